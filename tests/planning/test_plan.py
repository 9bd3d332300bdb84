"""`perpo plan` and `perpo train --dry-run` before anything exists, half-way, and on broken runs."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perpo_pipeline.cli import main
from perpo_pipeline.config.file import load_config
from perpo_pipeline.machine import GIB
from perpo_pipeline.planning import plan as planning
from perpo_pipeline.planning.calibration import Calibration
from perpo_pipeline.planning.hardware import Hardware
from perpo_pipeline.planning.notes import notes_of
from perpo_pipeline.planning.rates import Rate
from perpo_pipeline.planning.tokens import Answers
from perpo_pipeline.run import Run

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CONFIG = """
run: r
model: {id: testbed, dtype: float32, device: cpu}
prepare:
  train: {source: testbed, num_prompts: 8}
  unused: {source: testbed, num_prompts: 3}
  test: {source: testbed, num_prompts: 4}
sample: {num_samples: 4, temperature: 1.0, max_new_tokens: 24, batch_size: 4}
filter: {min_margin: 0.01}
train: {batch_size: 4, epochs: 2, lora: {rank: 2, alpha: 4}, methods: {perpo: {}, sft: {}}}
eval: {max_new_tokens: 24, batch_size: 4, condition_prompts: 2}
"""


@pytest.fixture
def perpo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(CONFIG)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--config", "r.yaml"])
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


def test_nothing_exists_and_nothing_is_made(perpo: Callable[..., tuple[int, str, str]]) -> None:
    """A real calibration of the shipped model: all times are known, and no folder appears."""
    code, out, err = perpo("plan", "--json", "--set", "train.methods.mdpo={}")
    plan = json.loads(out)
    assert code == 0 and "a few seconds of the work" in err
    assert not Path("data").exists()
    assert plan["prompts"]["train"] == {
        "prompts": 8,
        "used": ["sampled"],
        "how": "to be rendered",
    }
    assert plan["prompts"]["unused"]["used"] == []
    assert plan["completions"] == 32
    assert (plan["lists"]["low"], plan["lists"]["high"]) == (0, 8)
    assert plan["trainings"]["perpo"]["steps"] == 4  # ceil(8 / 4) x 2
    assert plan["tokens"]["image"]["median"] == 144
    assert 0 < plan["tokens"]["answer"]["low"] <= 24
    assert plan["download_bytes"] == 0
    stages = {stage["stage"]: stage for stage in plan["time_s"]}
    assert {"sample", "reference", "train perpo", "eval base", "report"} <= set(stages)
    assert stages["reference blank-image"]["high"] > 0
    assert plan["total_s"][0] == pytest.approx(sum(s["low"] for s in stages.values()))
    starting = stages.pop("starting")  # as long as this process, which runs other tests, too
    assert 0 < starting["low"] <= starting["high"]
    assert all(0 <= s["low"] <= s["high"] < 600 for s in stages.values())


def test_what_does_not_fit_is_computed_and_not_tried(
    perpo: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial of 100,000 answers per prompt took all memory."""
    here = Hardware("a small machine", 1, GIB, 1e12, 1e10, "t", here=True, is_gpu=False)
    monkeypatch.setattr(planning, "this_machine", lambda _: here)
    monkeypatch.setattr(planning, "calibrate", lambda *_: pytest.fail("it was tried"))
    code, out, _ = perpo("plan", "--set", "sample.num_samples=20000")
    assert code == 0 and "is too much for 1 GiB: no batch size fits" in " ".join(out.split())
    source = re.search(r"sample +8 prompts .*  (\[.\])\n", out)
    assert source is not None and f"{source[1]} computed from FLOPs" in out


def test_a_hybrid_under_zero_3_is_announced_as_refused(
    perpo: Callable[..., tuple[int, str, str]], tiny_qwen3_5: Path
) -> None:
    """The same error ends `perpo train`, before it loads weights."""
    sets = ("--set", f"model.id={tiny_qwen3_5}", "--set", "train.methods.sft.deepspeed=zero3")
    code, out, err = perpo("plan", "--json", "--hardware", "h100x2", *sets)
    assert code == 0, err
    (note,) = (one for one in json.loads(out)["notes"] if "ZeRO-3" in one)
    assert note.endswith(
        "which has layers with a recurrent state (linear_attention), so `perpo train --method sft` "
        "will refuse train.deepspeed zero3: set it to zero2, or leave it out"
    )


def test_the_dry_run_needs_no_lists_and_reads_those_that_are_there(
    perpo: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = perpo("train", "--method", "perpo", "--dry-run")
    assert code == 0 and "  lists      at most 8, not made yet (unknown until answers" in out
    assert "  steps      4 = 2 per epoch (8 lists / 4" in out and "  memory     about" in out
    assert not Path("data/r/adapter").exists()
    for stage in ("prepare", "sample", "score"):
        assert perpo(stage, "--quiet")[0] == 0
    code, out, _ = perpo("train", "--method", "sft", "--dry-run")
    assert code == 0 and "not made yet (what filter keeps of the scores that are there)" in out

    trial = Calibration({("train", "perpo"): Rate(1, 2, "t")}, Answers((5, 5), (2, 2), "t"))
    monkeypatch.setattr(planning, "calibrate", lambda *_: trial)
    plan = json.loads(perpo("plan", "--json")[1])
    kept = plan["lists"]["low"]
    assert kept == plan["lists"]["high"]
    assert perpo("filter", "--quiet")[0] == 0
    manifest = next(Path("data/r/preferences/train").glob("*/manifest.json"))
    assert json.loads(manifest.read_text())["rows"] == kept
    shown = perpo("plan")[1]
    assert f"{kept} lists with a margin of 0.01 or more: what filter keeps" in shown
    warmer = perpo("plan", "--set", "sample.temperature=0.7")[1]
    assert "finished version in data" in warmer  # the speed is that of the past one
    assert "nothing to do: it is up to date" in shown
    stages = {one["stage"]: one for one in json.loads(perpo("plan", "--json")[1])["time_s"]}
    assert stages["sample"]["high"] == stages["score, filter"]["high"] == 0
    assert stages["train perpo"]["high"] > 0
    other = json.loads(perpo("plan", "--json", "--set", "prepare.train.num_prompts=6")[1])
    assert other["prompts"]["train"]["prompts"] == 6  # the prepared ones are of another setting
    assert other["lists"]["how"].startswith("unknown until answers are scored")
    next(Path("data/r/scores/train").glob("*/manifest.json")).write_text("{")
    code, out, err = perpo("plan")
    assert code == 2 and "manifest cannot be read" in err and not out


def test_bad_hardware_and_a_missing_file_are_one_message(
    perpo: Callable[..., tuple[int, str, str]],
) -> None:
    code, _, err = perpo("plan", "--hardware", "h100y8")
    assert code == 2 and "--hardware h100y8: no such hardware; did you mean 'h100'?" in err
    Path("r.yaml").write_text(CONFIG.replace("testbed, num_prompts: 8", "jsonl, path: no.jsonl"))
    code, out, _ = perpo("plan", "--hardware", "rtx4090")
    assert code == 0 and "lists: unknown, as the prompts are" in out
    assert "what is known" in out and "no.jsonl" in out
    Path("no.jsonl").write_text('{"image": "a.png"}\n')
    code, _, err = perpo("plan")
    assert code == 2 and "line 1" in err


@pytest.mark.parametrize("card", ["rtx4090", "l4"])
def test_the_recipe_for_24_gb_fits_there_as_it_is_configured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], card: str
) -> None:
    """By its published shape: neither the model nor the data is on this machine."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe = str(CONFIGS / "qwen3-vl-4b-24gb.yaml")
    with pytest.raises(SystemExit):
        main(["plan", "--config", recipe, "--hardware", card, "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert [one["fits"] for one in plan["trainings"].values()] == [True] * 3
    assert plan["sampling"]["fits"]
    assert all(8 < one["memory_bytes"] / GIB < 0.9 * 24 for one in plan["trainings"].values())


@pytest.mark.parametrize(
    ("card", "model", "settings"),
    [
        ("l40s", "7b", {"train.max_tokens_per_forward=5120"}),
        ("rtx4090", "7b", {"train.gradient_checkpointing=true", "train.max_tokens_per_forward"}),
        ("rtx4090", "13b", {"model.quantization=nf4", "train.gradient_checkpointing=true"}),
        ("l40s", "13b", {"train.gradient_checkpointing=true"}),
    ],
)
def test_what_does_not_fit_comes_with_the_settings_that_make_it_fit(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    card: str,
    model: str,
    settings: set[str],
) -> None:
    """The paper's recipe with lists as long as they can be: weights of 13 and 25 GiB."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe = str(CONFIGS / "llava15-grounding.yaml")
    chosen = ["--set", f"model.id=llava-hf/llava-1.5-{model}-hf"]
    with pytest.raises(SystemExit):
        main(["plan", "--config", recipe, "--hardware", card, *chosen])
    out = " ".join(capsys.readouterr().out.split())
    needed, _, advice = out.partition("train perpo: about")[2].partition("with ")
    assert f"is too much for {24 if card == 'rtx4090' else 48} GiB" in needed
    advice = advice.partition("disk")[0]
    assert all(setting in advice for setting in settings) and "(fits)" in advice
    assert ("model.quantization=nf4" in advice) == (settings >= {"model.quantization=nf4"})
    assert ("sample.batch_size=8 does" in out) == (model == "13b" and card == "rtx4090")


def test_prompts_of_a_file_are_counted_and_only_some_images_are_opened(
    perpo: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    monkeypatch.setattr("perpo_pipeline.planning.amounts.LOOKED_AT", 3)
    Image.new("RGB", (32, 32)).save("a.png")
    row = {"image": "a.png", "expression": "it", "task": "grounding", "gt_box": [1, 1, 9, 9]}
    Path("a.jsonl").write_text(f"{json.dumps(row)}\n" * 40)
    Path("r.yaml").write_text(CONFIG.replace("testbed, num_prompts: 8", "jsonl, path: a.jsonl"))
    plan = json.loads(perpo("plan", "--hardware", "h100x8", "--json")[1])
    assert plan["prompts"]["train"]["prompts"] == 40
    assert plan["prompts"]["train"]["how"] == "counted in the jsonl files"
    assert plan["completions"] == 160
    long = ("plan", "--hardware", "h100", "--set", "sample.max_new_tokens=1000")
    assert any("exceed the model's context" in note for note in perpo(*long)[1].split("note: "))
    served = "sample.backend=openai sample.base_url=http://127.0.0.1:1/v1"
    sets = [word for one in served.split() for word in ("--set", one)]
    out = perpo("plan", "--hardware", "h100", *sets)[1]
    assert "unknown: a server answers" in out


def test_without_prompts_the_tokens_are_not_said_to_lack_a_processor(
    perpo: Callable[..., tuple[int, str, str]],
) -> None:
    gone = re.sub("source: testbed, num_prompts: .", "source: jsonl, path: gone.jsonl", CONFIG)
    Path("r.yaml").write_text(gone)
    code, out, _ = perpo("plan")
    assert code == 0 and "unknown until there are prompts to count them in" in out
    assert "train  " in out and "no such file" in out


@pytest.mark.parametrize(("name", "has_rounds"), [("demo-rounds", True), ("demo", False)])
def test_a_file_with_rounds_is_told_what_plans_them(name: str, has_rounds: bool) -> None:
    elsewhere: Any = SimpleNamespace(here=False, count=1)
    model: Any = SimpleNamespace(id="testbed", vlm=None, shape=None, family=None)
    lists: Any = SimpleNamespace(high=None, known=False)
    found = notes_of(Run(load_config(CONFIGS / f"{name}.yaml")), elsewhere, model, lists, None)
    assert any("perpo iterate" in note and "--dry-run" in note for note in found) == has_rounds
