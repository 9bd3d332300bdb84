"""Training on the shipped testbed model: the step, its settings, and its files."""

import errno
import logging
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.errors import ArtifactError, InputError, Stopped
from perpo_pipeline.prepare import testbed as testbed_prompts
from perpo_pipeline.train.batches import ListCollator, list_rows
from perpo_pipeline.train.checkpoints import MarkWhole
from perpo_pipeline.train.engine import ListPolicy, reference_logps
from perpo_pipeline.train.fit import fit
from perpo_pipeline.train.lists import (
    TrainingList,
    best_against_worst,
    with_blank_images_of,
    with_reference,
)
from perpo_pipeline.train.losses import diagnose_lists, lipo_lambda_loss
from perpo_pipeline.train.token_budget import Forward, forward_tokens
from perpo_pipeline.train.trainer import ListTrainer, batch_losses
from perpo_pipeline.vlm.adapters import attach_adapter, write_record
from perpo_pipeline.vlm.decoding import sample_lists
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.inputs import encode_row
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import Vlm

PREPROCESS = "processor"
SETTINGS: dict[str, Any] = {
    "batch_size": 4,
    "learning_rate": 5e-4,
    "beta": 1.0,
    "lora": {"rank": 8, "alpha": 16},
    "lr_scheduler": "constant",
    "checkpoint_every": 10_000,
}


def settings(**changed: Any) -> TrainSettings:
    return TrainSettings.model_validate({**SETTINGS, **changed})


def load_testbed(dtype: str = "float32") -> Vlm:
    return load_vlm(resolve_model("testbed"), dtype=dtype, device="cpu")


def make_lists(num_prompts: int, num_samples: int) -> list[TrainingList]:
    """Sampled lists; the order of the distinct completions stands in for a reward."""
    vlm = load_testbed()
    chosen = testbed_prompts.testbed_settings(0, "train", num_prompts)
    rows = testbed_prompts.render_prompts(chosen, "train")[:]
    encoded = [encode_row(vlm, row, PREPROCESS) for row in rows]
    drawn = sample_lists(
        vlm,
        encoded,
        num_samples=num_samples,
        temperature=1.0,
        max_new_tokens=24,
        seeds=list(range(num_prompts)),
    )
    lists = []
    for row, completions in zip(rows, drawn, strict=True):
        distinct = list({c.token_ids: c for c in completions}.values())
        if len(distinct) > 1:
            rewards = [i / (len(distinct) - 1) for i in range(len(distinct))]
            ids = [list(c.token_ids) for c in distinct]
            lists.append(TrainingList(row, ids, rewards, [1] * len(distinct)))
    collate = ListCollator(vlm, PREPROCESS, "shared-prefix", 10_000)
    return with_reference(lists, reference_logps(vlm.model, collate(lists)["batches"]))


@pytest.fixture(scope="module")
def lists() -> list[TrainingList]:
    return make_lists(num_prompts=12, num_samples=4)


def run(
    lists: Sequence[TrainingList],
    chosen: TrainSettings,
    where: Path,
    *,
    forward: Forward = "shared-prefix",
    dtype: str = "float32",
) -> tuple[ListTrainer, list[dict[str, Any]]]:
    return fit(load_testbed(dtype), lists, chosen, PREPROCESS, forward, where, quiet=True)


def losses(history: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([entry["loss"] for entry in history], dtype=torch.float64)


def test_fifty_steps_of_both_forwards_have_the_same_losses(
    lists: list[TrainingList], tmp_path: Path
) -> None:
    chosen = settings(epochs=9.0, learning_rate=1e-4, batch_size=2)
    shared = losses(run(lists, chosen, tmp_path / "a")[1])
    plain = losses(run(lists, chosen, tmp_path / "b", forward="separate")[1])
    assert len(shared) >= 50
    assert (shared - plain).abs().max() < 1e-4
    assert shared[-5:].mean() < shared[:5].mean() - 0.1  # and something was learnt


@pytest.mark.parametrize("method", ["perpo", "sft"])
def test_the_token_budget_changes_a_step_by_rounding_alone(
    lists: list[TrainingList], tmp_path: Path, method: str
) -> None:
    if method == "sft":
        lists = [
            replace(e, completions=e.completions[:1], rewards=[1.0], counts=[1], ref_logps=None)
            for e in lists
        ]
    whole, parts = (
        run(lists, settings(method=method, max_tokens_per_forward=budget), tmp_path / str(budget))
        for budget in (10_000, 1)  # 1: every list is a forward by itself
    )
    assert (losses(whole[1]) - losses(parts[1])).abs().max() < 1e-5
    ours, theirs = (t.policy.state_dict() for t in (whole[0], parts[0]))
    lora = [name for name in ours if "lora_B" in name]
    assert lora and all(ours[n].abs().max() > 0 for n in lora)
    assert max(float((ours[n] - theirs[n]).abs().max()) for n in lora) < 1e-4


@pytest.fixture(scope="module")
def history(
    lists: list[TrainingList], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """The log of an uninterrupted training of four epochs."""
    return run(lists, settings(epochs=4.0), tmp_path_factory.mktemp("history"))[1]


def test_the_first_step_starts_at_chance(history: list[dict[str, Any]]) -> None:
    """Policy = reference: every pair's loss is log 2, accuracy one half, and nothing has moved."""
    first = history[0]
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert first["implicit_margin"] == pytest.approx(0, abs=1e-3)
    assert first["kl"] == pytest.approx(0, abs=1e-3)
    assert first["best_logp"] < 0 and first["worst_logp"] < 0 and first["tokens_per_s"] > 0
    assert history[-1]["reward_accuracy"] > 0.6


@torch.no_grad()
def test_scores_that_differ_by_rounding_alone_are_tied(lists: list[TrainingList]) -> None:
    """The same bf16 weights, lists in one row, as on CUDA, and alone: rounding ranks nothing."""
    vlm = load_testbed("bfloat16")
    together, alone = (ListCollator(vlm, PREPROCESS, "shared-prefix", n) for n in (10_000, 1))
    together.in_one_row = True
    scored = with_reference(lists, reference_logps(vlm.model, together(lists)["batches"]))
    chosen = settings(method="lipo-lambda")
    accuracies, by_rounding, changed = [], [], []
    for batch in alone(scored)["batches"]:
        logps = ListPolicy(vlm.model)(batch.lists)
        inputs = (batch.ref_logps, batch.rewards)
        rest = {"counts": batch.counts, "mask": batch.lists.mask}
        accuracies += diagnose_lists(logps, *inputs, **rest, ties=batch.ties).reward_accuracy
        by_rounding += diagnose_lists(logps, *inputs, **rest).reward_accuracy
        found = batch_losses(logps, batch, chosen)
        tied = lipo_lambda_loss(logps, *inputs, **rest, beta=chosen.beta, ties=batch.ties)
        ranked = lipo_lambda_loss(logps, *inputs, **rest, beta=chosen.beta)
        assert torch.equal(found, tied)
        changed.append(not torch.equal(tied, ranked))
        moved = logps + 20 * batch.rewards  # a real difference
        assert diagnose_lists(moved, *inputs, **rest, ties=batch.ties).reward_accuracy == 1
    assert set(map(float, accuracies)) == {0.5} and set(map(float, by_rounding)) != {0.5}
    assert any(changed)


def test_the_log_counts_packed_tokens(
    lists: list[TrainingList], history: list[dict[str, Any]]
) -> None:
    """The prefix once, and each completion without its last token, which predicts nothing."""
    vlm = load_testbed()
    expected = sum(
        encode_row(vlm, entry.prompt, PREPROCESS).num_tokens
        + sum(len(completion) - 1 for completion in entry.completions)
        for entry in lists
    )
    assert sum(entry["tokens"] for entry in history) == 4 * expected
    assert "peak_memory_gib" not in history[0]  # of an accelerator


@pytest.mark.parametrize("method", ["lipo", "lipo-lambda", "dpo"])
def test_other_methods_learn_the_order(
    lists: list[TrainingList], tmp_path: Path, method: str
) -> None:
    if method == "dpo":
        lists = [best_against_worst(entry) for entry in lists]
    _, history = run(lists, settings(method=method, epochs=4.0), tmp_path)
    assert losses(history)[-3:].mean() < 0.6
    assert history[-1]["reward_accuracy"] > 0.6


def test_a_step_of_pro_divides_by_the_tokens_of_each_completion(lists: list[TrainingList]) -> None:
    """A gap of 1 and means of -6/4 and -1/7, -2/4 and -3/7: log(1 + e^(worse - better))."""
    pairs = [best_against_worst(entry) for entry in lists[:2]]
    cut = [replace(e, completions=[e.completions[0][:4], e.completions[1][:7]]) for e in pairs]
    collate = ListCollator(load_testbed(), PREPROCESS, "shared-prefix", 10_000)
    (batch,) = collate(cut)["batches"]
    found = batch_losses(torch.tensor([[-6.0, -1.0], [-2.0, -3.0]]), batch, settings(method="pro"))
    margins = torch.tensor([6 / 4 - 1 / 7, 2 / 4 - 3 / 7])
    torch.testing.assert_close(found, torch.nn.functional.softplus(margins))


def test_the_best_completion_is_read_behind_a_blank_image_in_the_same_forward(
    lists: list[TrainingList],
) -> None:
    """Its log-probability and its reference are those of a prompt with a blank image by itself."""
    vlm = load_testbed()
    chosen = settings(method="mdpo", beta=0.5)
    pairs = [best_against_worst(entry) for entry in lists[:3]]
    collate = ListCollator(vlm, PREPROCESS, "shared-prefix", 10_000)
    blank = [e.negative for e in with_blank_images_of(pairs, chosen.chosen_method, vlm)]
    assert [one.completions for one in blank] == [[pair.completions[0]] for pair in pairs]
    alone = reference_logps(vlm.model, collate(blank)["batches"])
    shown = reference_logps(vlm.model, collate(pairs)["batches"])
    assert all(abs(alone[p][0] - shown[p][0]) > 0.1 for p in shown)  # the image matters
    both = with_blank_images_of(pairs, chosen.chosen_method, vlm, alone)
    rows = [list_rows(vlm, some, PREPROCESS, "shared-prefix") for some in (pairs, blank)]
    together = [a + b for a, b in zip(*rows, strict=True)]
    assert list_rows(vlm, both, PREPROCESS, "shared-prefix") == together
    for forward in ("shared-prefix", "separate"):
        (batch,) = ListCollator(vlm, PREPROCESS, forward, 10_000)(both)["batches"]
        counted = forward_tokens(list_rows(vlm, both, PREPROCESS, forward), in_one_row=False)
        assert counted == batch.lists.input_ids.numel()
        with torch.no_grad():
            logps = ListPolicy(vlm.model)(batch.lists)
        own, wrong = batch.split(logps)
        expected = torch.tensor([alone[p][0] for p in batch.prompt_ids])
        torch.testing.assert_close(wrong[:, 0], expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(batch.negative_ref_logps[:, 0], expected)
        torch.testing.assert_close(own, batch.ref_logps, atol=1e-4, rtol=0)
        at_start = batch_losses(logps, batch, chosen)
        torch.testing.assert_close(at_start, torch.full((3,), 2.0794), atol=1e-3, rtol=0)
        moved = logps.clone()
        moved[3:, 0] -= 4  # the blank images' alone: -log sigmoid(2) for one of three log 2
        torch.testing.assert_close(
            batch_losses(moved, batch, chosen), torch.full((3,), 1.5132), atol=1e-3, rtol=0
        )


def test_the_anchor_and_smoothing_reach_the_loss(lists: list[TrainingList]) -> None:
    """Two lists of three completions; s = policy - reference, beta 1, gamma 0: uniform pairs."""
    some = [
        replace(
            e,
            completions=e.completions[:3],
            rewards=[0.0, 0.5, 1.0],
            counts=[1] * 3,
            ref_logps=[-1.0, -2.0, -3.0],
        )
        for e in lists[:2]
    ]
    collate = ListCollator(load_testbed(), PREPROCESS, "shared-prefix", 10_000)
    (batch,) = collate(some)["batches"]
    logps = torch.tensor([[-2.0, -2.0, -2.0], [-1.0, -2.0, -3.0]])  # s = [-1, 0, 1] and zeros
    margins = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0]])
    right, flipped = (-torch.nn.functional.logsigmoid(sign * margins).mean(1) for sign in (1, -1))
    best = -logps[:, 2] / batch.lists.num_tokens[:, 2]
    for smoothing, weight in [(0.0, 0.0), (0.25, 0.0), (0.0, 2.0), (0.25, 2.0)]:
        chosen = settings(gamma=0.0, label_smoothing=smoothing, sft_weight=weight)
        expected = (1 - smoothing) * right + smoothing * flipped + weight * best
        torch.testing.assert_close(batch_losses(logps, batch, chosen), expected)


def test_a_step_waits_for_the_device_twice_whatever_its_number_of_forwards(
    lists: list[TrainingList], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for losses, measures and gradient norm, once for the Trainer's own sum of losses.

    A number that Python gets from a tensor stands for a wait. The check of rewards and counts is
    left out: on CUDA the device makes it.
    """
    readers: Counter[str] = Counter()
    for name in ("item", "tolist", "__float__", "__bool__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name), readers))
    modes: list[bool] = []
    real = ListPolicy.train
    monkeypatch.setattr(
        ListPolicy, "train", lambda self, mode=True: modes.append(mode) or real(self, mode)
    )
    _, log = run(lists, settings(max_tokens_per_forward=1), tmp_path)  # each list is a forward
    assert len(log) == 3
    assert +readers == {"trainer.py": 3 + 1, "step_log.py": 3}  # and once at the end
    assert len(modes) <= 2  # the Trainer's own, and the first step's


def counted(read: Callable[..., Any], readers: Counter[str]) -> Callable[..., Any]:
    """A tensor's method that counts the files of the step that call it."""

    def wrapped(tensor: torch.Tensor, *args: Any) -> Any:
        code = sys._getframe(1).f_code
        path = Path(code.co_filename)
        if path.name in ("trainer.py", "step_log.py", "losses.py", "throughput.py"):
            readers[path.name] += not code.co_name.endswith("check_values")
        return read(tensor, *args)

    return wrapped


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_prompts(
    lists: list[TrainingList], tmp_path: Path
) -> None:
    broken = replace(lists[0], ref_logps=[float("nan")] * len(lists[0].completions))
    with pytest.raises(InputError) as caught:
        run([broken, *lists[1:4]], settings(), tmp_path)
    assert "nan" in str(caught.value) and lists[0].prompt["prompt_id"] in str(caught.value)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_what_is_trained_comes_back_onto_the_base(
    lists: list[TrainingList], tmp_path: Path, tuning: str
) -> None:
    scope = ["language_model", "projector"]
    trainer, history = run(
        lists, settings(tuning=tuning, scope=scope, learning_rate=1e-4), tmp_path / "run"
    )
    assert len(history) == 3
    trainer.save_trained(tmp_path / "saved")
    vlm = load_testbed()
    write_record(tmp_path / "saved", {"base_identity": vlm.identity})
    loaded = attach_adapter(vlm, tmp_path / "saved")
    batches = ListCollator(vlm, PREPROCESS, "shared-prefix", 10_000)(lists)["batches"]
    again = reference_logps(loaded.model, batches)
    trained = reference_logps(trainer.policy, batches)
    base = {entry.prompt["prompt_id"]: entry.ref_logps for entry in lists}
    for prompt_id, logps in trained.items():
        assert again[prompt_id] == pytest.approx(logps, abs=1e-5)
        assert max(abs(a - b) for a, b in zip(logps, base[prompt_id], strict=True)) > 1e-3


def test_full_tuning_changes_only_its_scope(lists: list[TrainingList], tmp_path: Path) -> None:
    trainer, _ = run(lists, settings(tuning="full", learning_rate=1e-4), tmp_path / "run")
    trainer.save_trained(tmp_path)
    saved = load_file(tmp_path / "trained_weights.safetensors")
    base = dict(load_testbed().model.named_parameters())
    assert saved and all("language_model" in n or n.startswith("lm_head") for n in saved)
    assert all(not torch.equal(weight, base[name]) for name, weight in saved.items())
    for name, parameter in trainer.policy.named_parameters():
        assert (name in saved) == parameter.requires_grad
        assert name in saved or torch.equal(parameter, base[name])


def interrupt_after(patched: pytest.MonkeyPatch, steps: int) -> None:
    """Let the next step after `steps` of them end the training as Ctrl-C does."""
    real_step = ListTrainer.training_step

    def interrupted(self: ListTrainer, *args: Any) -> torch.Tensor:
        if self.state.global_step == steps:
            raise KeyboardInterrupt
        return real_step(self, *args)

    patched.setattr(ListTrainer, "training_step", interrupted)


@pytest.mark.parametrize(
    ("tuning", "scope"),
    [
        ("lora", ["language_model"]),
        ("full", ["language_model"]),
        # The tower's last layer gets no gradient, so the optimiser does not hold its weights.
        ("lora", ["language_model", "projector", "vision_tower"]),
    ],
)
def test_a_resumed_run_ends_as_an_uninterrupted_one_in_bfloat16(
    lists: list[TrainingList],
    tmp_path: Path,
    tuning: str,
    scope: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    how = {"tuning": tuning, "scope": scope, "learning_rate": 1e-4}
    chosen = settings(**how, checkpoint_every=2, epochs=2.0)
    whole, expected = run(lists, chosen, tmp_path / "whole", dtype="bfloat16")
    with monkeypatch.context() as patched:
        interrupt_after(patched, 3)
        with pytest.raises(KeyboardInterrupt):
            run(lists, chosen, tmp_path / "torn", dtype="bfloat16")
    # Checkpoints of older versions also had the weights; what the optimiser holds comes after them.
    whole.save_trained(tmp_path / "torn/checkpoint-2")
    resumed, history = run(lists, chosen, tmp_path / "torn", dtype="bfloat16")
    assert [e["step"] for e in history] == [e["step"] for e in expected]
    assert losses(history).tolist() == losses(expected).tolist()
    for name, weight in whole.policy.state_dict().items():
        assert torch.equal(weight, resumed.policy.state_dict()[name]), name


@pytest.mark.parametrize("order", [None, "widest-first"])
def test_a_run_resumed_within_its_second_epoch_goes_on_in_that_epochs_order(
    lists: list[TrainingList], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str | None
) -> None:
    lists = [replace(e, rewards=[r * (i % 5) for r in e.rewards]) for i, e in enumerate(lists, 1)]
    chosen = settings(checkpoint_every=1, epochs=2.0, order=order)
    _, expected = run(lists, chosen, tmp_path / "whole")
    with monkeypatch.context() as patched:
        interrupt_after(patched, 4)
        with pytest.raises(KeyboardInterrupt):
            run(lists, chosen, tmp_path / "torn")
    _, history = run(lists, chosen, tmp_path / "torn")
    assert len(expected) == 6
    assert losses(history).tolist() == losses(expected).tolist()
    if order:  # each epoch begins with the lists of margins 4 and 3
        widest = sorted(lists, key=lambda e: -e.margin)[:4]
        assert [e.margin for e in widest] == [4.0, 4.0, 3.0, 3.0]
        rows = list_rows(load_testbed(), widest, PREPROCESS, "shared-prefix")
        assert expected[0]["tokens"] == expected[3]["tokens"] == sum(n for (n,) in rows)


@pytest.mark.parametrize(("dtype", "files"), [("bfloat16", 0), ("float32", 1)])
def test_a_checkpoint_holds_each_trained_number_once_with_its_two_moments(
    lists: list[TrainingList], tmp_path: Path, dtype: str, files: int
) -> None:
    """12 bytes: master, or fp32 weight, and moments. Without its weights it is refused."""
    chosen = settings(checkpoint_every=2, lora={"rank": 32, "alpha": 64})
    trainer, _ = run(lists, chosen, tmp_path, dtype=dtype)
    trained = sum(p.numel() for p in trainer.policy.parameters() if p.requires_grad)
    checkpoint = tmp_path / "checkpoint-3"
    size = sum(p.stat().st_size for p in checkpoint.iterdir())
    assert 12 < size / trained < 13  # 16 when bf16 checkpoints had the adapter too
    weights = list(checkpoint.glob("*.safetensors"))
    assert len(weights) == files
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    if weights:
        weights[0].unlink()
    else:
        del state["state"][0]
        torch.save(state, checkpoint / "optimizer.pt")
    with pytest.raises(ArtifactError, match="lacks weights that were trained"):
        run(lists, settings(**{**chosen.model_dump(), "epochs": 2.0}), tmp_path, dtype=dtype)


def test_a_resumed_run_saves_in_the_intervals_of_its_own_settings(
    lists: list[TrainingList],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Stopped without intervals, it then saves each step; of warnings only the others come."""
    saved: list[int] = []
    real = MarkWhole.on_save
    logger = logging.getLogger("transformers.trainer_utils")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    type(logger).warning_once.cache_clear()

    def on_save(self: MarkWhole, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saved.append(state.global_step)
        logger.warning(f"saved {state.global_step}")
        real(self, args, state, control, **kwargs)

    monkeypatch.setattr(MarkWhole, "on_save", on_save)
    with monkeypatch.context() as patched:
        patched.setattr(ListTrainer, "training_step", signalled([signal.SIGINT]))
        with pytest.raises(Stopped):
            run(lists[:4], settings(checkpoint_every=None, batch_size=1), tmp_path)
    assert saved == [2]
    run(lists[:4], settings(checkpoint_every=1, batch_size=1), tmp_path)
    assert saved == [2, 3, 4]
    warned = {record.getMessage() for record in caplog.records}
    assert {f"saved {step}" for step in saved} <= warned
    assert not [text for text in warned if "trainer_state.json" in text]


@torch.no_grad()
def test_separate_rows_keep_the_token_budget_with_their_padding(
    lists: list[TrainingList],
) -> None:
    """Lists of 1 to 4 rows; the log-probabilities are those of one forward over all of them."""
    vlm = load_testbed()
    some = [replace(e, completions=e.completions[: 1 + i % 4]) for i, e in enumerate(lists)]
    some = [
        replace(e, rewards=e.rewards[:n], counts=e.counts[:n], ref_logps=None)
        for e, n in zip(some, [len(e.completions) for e in some], strict=True)
    ]
    whole, parts = (
        ListCollator(vlm, PREPROCESS, "separate", budget)(some)["batches"]
        for budget in (100_000, 1_500)
    )
    assert len(whole) == 1 and 1 < len(parts) < len(some)
    assert all(batch.lists.input_ids.numel() <= 1_500 for batch in parts)
    expected, found = (reference_logps(vlm.model, batches) for batches in (whole, parts))
    for prompt_id, logps in expected.items():
        assert found[prompt_id] == pytest.approx(logps, abs=1e-4)


def test_a_disk_that_fills_up_at_a_checkpoint_leaves_the_one_before(
    lists: list[TrainingList],
    history: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The resumed run has the losses of the first of four uninterrupted epochs."""
    chosen = settings(checkpoint_every=1)
    real = ListTrainer._save_optimizer_and_scheduler

    def full(self: ListTrainer, output_dir: str) -> None:
        if self.state.global_step == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, output_dir)

    with monkeypatch.context() as patched:
        patched.setattr(ListTrainer, "_save_optimizer_and_scheduler", full)
        with pytest.raises(OSError, match="No space left"):
            run(lists, chosen, tmp_path / "full")
    assert [p.parent.name for p in (tmp_path / "full").glob("*/whole")] == ["checkpoint-1"]
    _, resumed = run(lists, chosen, tmp_path / "full")
    assert len(resumed) == 3
    assert losses(resumed).tolist() == losses(history[:3]).tolist()


@pytest.mark.parametrize(
    ("number", "times", "code"), [(signal.SIGTERM, 2, 143), (signal.SIGINT, 1, 130)]
)
def test_a_signal_ends_a_run_after_its_step_with_a_checkpoint(
    lists: list[TrainingList],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    times: int,
    code: int,
) -> None:
    """The signal comes in the second of three steps; SIGTERM comes twice."""
    before = signal.getsignal(number)
    with monkeypatch.context() as patched:
        patched.setattr(ListTrainer, "training_step", signalled([number] * times))
        with pytest.raises(Stopped, match="after step 2 of 3, which is saved") as stopped:
            run(lists, settings(), tmp_path)
    assert stopped.value.exit_code == code
    assert ("Ctrl-C again" in capsys.readouterr().err) == (number == signal.SIGINT)
    assert signal.getsignal(number) is before
    assert [p.parent.name for p in tmp_path.glob("*/whole")] == ["checkpoint-2"]


def test_a_second_ctrl_c_ends_at_once_with_the_last_checkpoint(
    lists: list[TrainingList], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is due after every step, by its time."""
    monkeypatch.setattr(ListTrainer, "training_step", signalled([signal.SIGINT] * 2))
    with pytest.raises(KeyboardInterrupt):
        run(lists, settings(checkpoint_minutes=1e-9), tmp_path)
    assert [p.parent.name for p in tmp_path.glob("*/whole")] == ["checkpoint-1"]


def signalled(numbers: Sequence[signal.Signals]) -> Callable[..., torch.Tensor]:
    """A training step that gets these signals when it is the second."""
    real = ListTrainer.training_step

    def step(self: ListTrainer, *args: Any) -> torch.Tensor:
        if self.state.global_step == 1:
            for number in numbers:
                signal.raise_signal(number)
        return real(self, *args)

    return step


def test_adapters_compute_in_bfloat16_and_are_saved_unrounded(
    lists: list[TrainingList], tmp_path: Path
) -> None:
    trainer, _ = run(lists, settings(learning_rate=1e-5), tmp_path / "run", dtype="bfloat16")
    inside = {n: p for n, p in trainer.policy.named_parameters() if p.requires_grad}
    assert {p.dtype for p in inside.values()} == {torch.bfloat16}
    trainer.save_trained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert {t.dtype for t in saved.values()} == {torch.float32} and len(saved) == len(inside)
    rounded = [torch.equal(t, t.bfloat16().float()) for t in saved.values()]
    assert not any(rounded)


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(
    lists: list[TrainingList], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ListTrainer._forward_backward

    def broken(self: ListTrainer, *args: Any) -> torch.Tensor:
        loss = real(self, *args)
        if self.state.global_step == 1:
            next(p for p in self.policy.parameters() if p.requires_grad).grad[0, 0] = torch.inf
        return loss

    monkeypatch.setattr(ListTrainer, "_forward_backward", broken)
    with pytest.raises(InputError, match="gradient's norm is inf at step 2") as caught:
        run(lists, settings(checkpoint_every=1), tmp_path)
    assert any(entry.prompt["prompt_id"] in str(caught.value) for entry in lists)
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    saved = load_file(tmp_path / "checkpoint-1/adapter_model.safetensors")
    assert all(bool(weight.isfinite().all()) for weight in saved.values())
