"""benchmarks/train_step.py on models of a few thousand weights: does it time what it says?"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from perpo_pipeline.train.losses import perpo_loss

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CPU = torch.device("cpu")
FULL_ROWS = ("concatenated", "concatenated-same-settings")


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The benchmark's modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.setenv("HF_HUB_OFFLINE", "1")  # which the script sets
        import train_step
        import train_step_models
        import train_step_recipe
        import train_step_variants

        yield SimpleNamespace(
            script=train_step,
            models=train_step_models,
            recipe=train_step_recipe,
            variants=train_step_variants,
        )


def tiny_regime(models: ModuleType, model_type: str, num_samples: int = 3):
    """Images of 2 x 2 features, for LLaVA-NeXT with 4 x (4 + 1) more, for Qwen 3 x 2."""
    shape = models.Shape(model_type, 64, 96, 2, 4, 2, 300, (32, 64, 2, 2), 28, rank=4)
    image_px, image_tokens = {
        "llava": ((28, 28), 4),
        "llava_next": ((56, 56), 24),
        "qwen2_5_vl": ((84, 56), 6),
    }[model_type]
    return models.Regime(
        shape, image_px, image_tokens, image_tokens + 9, 5, num_samples, lists=2, full_lists=2
    )


def tiny_setup(bench: SimpleNamespace, model_type: str, num_samples: int = 3):
    regime = tiny_regime(bench.models, model_type, num_samples)
    model = bench.models.build_vlm(regime.shape, torch.float32, CPU)
    lists = bench.models.random_lists(model[0], regime, 2)
    return bench.variants.Setup(*model, regime, lists)


def run_step(work):
    with work.settings():
        work.model.zero_grad()
        return work.step()


def adapter_gradients(work) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in work.model.parameters() if p.requires_grad])


@pytest.mark.parametrize("model_type", ["llava", "llava_next", "qwen2_5_vl"])
def test_every_way_gives_the_same_log_probabilities_and_ours_the_same_gradient(
    bench: SimpleNamespace, model_type: str
):
    setup = tiny_setup(bench, model_type)
    ours = bench.variants.shared_prefix(setup)
    logps = run_step(ours)
    gradient = adapter_gradients(ours)
    assert logps.shape == (2, 3)
    assert logps.unique().numel() == 6
    for name in FULL_ROWS:
        work = bench.variants.VARIANTS[name](setup)
        torch.testing.assert_close(run_step(work), logps, rtol=0, atol=2e-5)
        if name == "concatenated-same-settings":
            torch.testing.assert_close(adapter_gradients(work), gradient, rtol=1e-3, atol=1e-6)


def test_trl_trains_on_the_same_tokens_and_pixels(bench: SimpleNamespace):
    pytest.importorskip("trl")
    pytest.importorskip("datasets")
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    setup = tiny_setup(bench, "llava", num_samples=2)
    model = setup.vlm.model
    work = bench.variants.trl(setup)
    set_peft_model_state_dict(work.model, get_peft_model_state_dict(model))
    packed = bench.variants.pack_lists(setup.vlm, setup.lists)
    with torch.no_grad():
        policy = bench.variants.packed_logps(model, packed)
        with model.disable_adapter():
            reference = bench.variants.packed_logps(model, packed)
    expected = perpo_loss(policy, reference, torch.tensor([[0.0, 1.0]] * 2)).mean()
    assert abs(expected - perpo_loss(policy, policy, torch.tensor([[0.0, 1.0]] * 2)).mean()) > 1e-4
    torch.testing.assert_close(run_step(work), expected, rtol=0, atol=1e-6)
    assert adapter_gradients(work).abs().max() > 0


@pytest.mark.parametrize("name", ["llava15-grounding", "dense-ocr", "qwen25-vl-grounding"])
@pytest.mark.parametrize("preset", ["cpu", "h200"])
def test_images_of_a_preset_give_the_tokens_it_names(
    bench: SimpleNamespace, preset: str, name: str
):
    regime = bench.script.PRESETS[preset][name]
    head = regime.shape.hidden // regime.shape.heads
    thin = replace(
        regime.shape,
        hidden=head,
        intermediate=16,
        layers=1,
        heads=1,
        kv_heads=1,
        vocab=64,
        tower=(16, 16, 4, 1),
        rank=2,
    )
    regime = replace(regime, shape=thin, answer_tokens=2, num_samples=2)
    vlm, twin = bench.models.build_vlm(thin, torch.float32, CPU)
    lists = bench.models.random_lists(vlm, regime, 1)
    setup = bench.variants.Setup(vlm, twin, regime, lists)
    # The model refuses images whose features are not as many as the prompt's placeholders.
    logps = bench.variants.packed_logps(vlm.model, bench.variants.pack_lists(vlm, setup.lists))
    assert lists[0].prompt.num_tokens == regime.prefix_tokens
    assert logps.isfinite().all()


def test_released_settings_leave_the_adapter_as_it_was(bench: SimpleNamespace):
    setup = tiny_setup(bench, "llava")
    vlm = setup.vlm
    vlm.model.to(torch.bfloat16)
    vlm.dtype = torch.bfloat16
    adapter = {n: p for n, p in vlm.model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in adapter.items()}
    with bench.variants.released_settings(vlm, True):
        assert {p.dtype for p in adapter.values()} == {torch.float32}
        assert vlm.model.is_gradient_checkpointing
    assert all(torch.equal(p, before[n]) and p.dtype == torch.bfloat16 for n, p in adapter.items())
    assert not vlm.model.is_gradient_checkpointing


@pytest.fixture
def tiny_preset(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    regimes = {"llava15-grounding": tiny_regime(bench.models, "llava")}
    monkeypatch.setitem(bench.script.PRESETS, "cpu", regimes)


def run_script(bench: SimpleNamespace, folder: Path, *options: str) -> dict:
    bench.script.main(["--repeats", "2", *options, "--json", str(folder / "found.json")])
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("tiny_preset")
def test_rows_hold_times_and_the_share_of_the_token_bound(bench: SimpleNamespace, tmp_path: Path):
    found = run_script(bench, tmp_path)
    rows = {row["variant"]: row for row in found["rows"]}
    assert list(rows) == [*FULL_ROWS, "shared-prefix"]
    for row in rows.values():
        assert row["regime"] == "llava15-grounding"
        assert row["ms_range"][0] <= row["ms_per_prompt"] <= row["ms_range"][1]
        assert row["peak_gib"] is None
        assert row["token_bound"] == pytest.approx(3 * (13 + 5) / (13 + 3 * 5))
    ours, full = rows["shared-prefix"], rows["concatenated-same-settings"]
    ratio = full["ms_per_prompt"] / ours["ms_per_prompt"]
    assert ours["share_of_token_bound"] == pytest.approx(ratio / ours["token_bound"])
    assert ours["full_step_ms_per_prompt"] > 0
    # Tokens of one list: 13 + 3 * (5 - 1) in a shared row, 3 * (13 + 5) in full ones.
    assert ours["tokens_per_s"] == pytest.approx(25e3 / ours["ms_per_prompt"])
    assert full["tokens_per_s"] == pytest.approx(54e3 / full["ms_per_prompt"])
    assert found["header"]["max_abs_dlogp_nats"]["llava15-grounding"]["shared-prefix"] < 2e-5
    assert found["header"]["settings"]["llava15-grounding"]["num_samples"] == 3


@pytest.mark.usefixtures("tiny_preset")
def test_a_way_without_enough_memory_does_not_end_the_run(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def too_large(setup):
        def step():
            raise torch.OutOfMemoryError("no room")

        return replace(bench.variants.concatenated(setup), step=step)

    monkeypatch.setitem(bench.script.VARIANTS, "concatenated", too_large)
    options = ("--variant", "shared-prefix", "concatenated")
    rows = {row["variant"]: row for row in run_script(bench, tmp_path, *options)["rows"]}
    assert rows["concatenated"]["ms_per_prompt"] is None
    assert rows["concatenated"]["note"] == "out of memory"
    assert rows["shared-prefix"]["ms_per_prompt"] > 0


@pytest.mark.usefixtures("tiny_preset")
def test_a_run_that_is_stopped_keeps_the_rounds_that_it_has(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rounds = []

    def stop(timing):
        rounds.append(timing)
        if len(rounds) == 3:  # warm-up, first and second round
            raise KeyboardInterrupt
        original(timing)

    original = bench.script.run
    monkeypatch.setattr(bench.script, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        run_script(bench, tmp_path, "--variant", "shared-prefix")
    (row,) = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["rows"]
    assert row["rounds"] == 1 and row["ms_per_prompt"] > 0


@pytest.mark.usefixtures("tiny_preset")
def test_a_model_without_enough_memory_is_recorded(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def too_large(*arguments):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(bench.script, "build_vlm", too_large)
    rows = run_script(bench, tmp_path, "--variant", "shared-prefix", "concatenated")["rows"]
    assert [row["variant"] for row in rows] == ["shared-prefix", "concatenated"]
    assert {row["note"] for row in rows} == {"out of memory beside the steps"}


def test_the_recipe_trains_on_every_list(bench: SimpleNamespace):
    setup = tiny_setup(bench, "llava")
    adapter = [p for p in setup.vlm.model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in adapter]
    said = bench.recipe.run_recipe(setup.vlm, replace(setup.regime, prefix_tokens=30), num_lists=3)
    assert said.startswith("3 lists, 2 steps: ")
    assert not any(torch.equal(p, old) for p, old in zip(adapter, before, strict=True))


ON_A_BARE_MACHINE = """
import sys
sys.path = [p for p in sys.path if not p.endswith("src")]
for name in "pydantic PIL pyarrow polars typer shapely rapidfuzz trl datasets".split():
    sys.modules[name] = None
import train_step
from train_step_models import Regime, Shape
shape = Shape("llava", 64, 96, 1, 4, 2, 300, (32, 64, 2, 2), 28, rank=4)
regime = Regime(shape, (28, 28), 4, 13, 5, 2, lists=2)
train_step.PRESETS["cpu"] = {"llava15-grounding": regime}
train_step.main(["--repeats", "1"])
"""


def test_a_bare_gpu_machine_has_all_that_it_needs():
    """torch, transformers, peft, numpy and a checkout; yaml comes with transformers itself."""
    done = subprocess.run(
        [sys.executable, "-c", ON_A_BARE_MACHINE],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "trl is left out: " in done.stdout
    assert "shared-prefix " in done.stdout
