"""Bad input, a full disk and the like in two real processes: one clear error, nothing spoilt.

The environment variable POISON (poisoning.py) makes one of the processes fail.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from distributed.starting import (
    CONFIG,
    Ended,
    Training,
    checkpoints,
    largest_difference,
    log_of,
    loss_difference,
    perpo,
    prepare_run,
    run_training,
    train_here,
    trained,
)
from safetensors.torch import load_file

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.train import launch
from perpo_pipeline.train.zero import FORCE_GUARD, load_zero_checkpoint, read_zero_config

pytestmark = pytest.mark.distributed

SMALL = {
    # With seed 0 a gradient of one weight is no more than rounding, whose sign Adam follows: that
    # weight differs by .0003 between one process and two, all others by less than .00004.
    "run: d": "run: d\nseed: 1",
    "num_prompts: 24": "num_prompts: 16",
    "num_samples: 6": "num_samples: 4",
    "max_lists: 19": "max_lists: 12",
    "checkpoint_every: 3": "checkpoint_every: 1",
}
STEPS = 6  # 12 lists, 4 per step, two epochs; a checkpoint after each step
TWO = ("--num-processes", "2")
HOW = {"ddp": TWO, "zero3": (*TWO, "--deepspeed", "zero3")}
FIX = "lower train.learning_rate, or look at these prompts with `perpo inspect`"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its preferences."""
    folder = tmp_path_factory.mktemp("failures")
    config = CONFIG
    for ours, theirs in SMALL.items():
        assert ours in config
        config = config.replace(ours, theirs)
    prepare_run(folder, config)
    return folder


@pytest.fixture(scope="module")
def single(workdir: Path) -> Version:
    """Trained in this process, without interruption."""
    return train_here(workdir, "single")


def assert_same(ours: Version, theirs: Version) -> None:
    """Equal to rounding (a learning rate of 1e-3 moves weights by about that per step)."""
    assert len(log_of(ours)) == len(log_of(theirs)) == STEPS
    assert loss_difference(ours, theirs) < 1e-5
    assert largest_difference(ours, theirs) < 1e-4


def poisoned(workdir: Path, out: str, what: str, *flags: str) -> Ended:
    """Train while `what` goes wrong: "KIND RANK STEP"; a disk may also be full at the end."""
    return Training(workdir, out, *flags, POISON=what).end()


def assert_one_error(ended: Ended, *parts: str) -> None:
    """One message, from the process in which the failure began, and the exit code for it."""
    assert ended.code == 2, ended.stderr
    assert ended.stderr.count("perpo: error:") == 1, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    for part in parts:
        assert part in ended.stderr, (part, ended.stderr)
    assert ended.seconds < 60


def assert_last_whole(out: Path, step: int) -> None:
    """The newest complete checkpoint is from `step`, and its weights are finite."""
    assert checkpoints(out)[-1] == step
    saved = load_file(next(out.glob(f"*/checkpoints/checkpoint-{step}/adapter_model.safetensors")))
    assert saved and all(bool(weight.isfinite().all()) for weight in saved.values())


@pytest.mark.parametrize(("kind", "how"), [("loss", "ddp"), ("gradient", "zero3")])
def test_what_is_not_finite_in_one_process_ends_all_before_it_reaches_the_weights(
    workdir: Path, how: str, kind: str
) -> None:
    ended = poisoned(workdir, f"{kind}-{how}", f"{kind} 1 2", *HOW[how])
    what = {"loss": "the loss is [nan", "gradient": "the gradient's norm is "}[kind]
    assert_one_error(ended, what, "at step 2", "where: ", FIX)
    assert_last_whole(workdir / f"{kind}-{how}", 1)
    where = ended.stderr.split("where: ")[1].splitlines()[0]
    prompts = re.findall(r"testbed, scene \d+ \(prompt [0-9a-f]{16}\)", where)
    assert prompts and ", ".join(prompts) == where
    assert len(set(prompts)) == (4 if kind == "gradient" else len(prompts))


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """A disk of 4 MB at `place`."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(
            f"a small disk cannot be mounted ({mounted.stderr.strip()}): run it as root, "
            "or under `unshare --user --map-root-user --mount`"
        )
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Leave no byte free."""
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as sink:
        while True:
            sink.write(bytes(4096))
    assert shutil.disk_usage(disk).free == 0
    return ballast


@pytest.fixture(scope="module", params=HOW)
def filled(workdir: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, Ended]]:
    """How it was trained on a disk that was filled after the first checkpoint, and how it ended.

    The disk has room again."""
    out = workdir / f"full-{request.param}"
    with small_disk(out):
        training = Training(workdir, out.name, *HOW[request.param])
        training.wait_for_checkpoint(1)
        ballast = fill(out)
        ended = training.end()
        ballast.unlink()
        yield request.param, ended


def test_a_full_disk_leaves_the_last_checkpoint(workdir: Path, filled: tuple[str, Ended]) -> None:
    how, ended = filled
    out = f"full-{how}"
    assert_one_error(ended, "the disk is full", f"where: {out}/", "then run the same command")
    assert_last_whole(workdir / out, checkpoints(workdir / out)[-1])


def test_with_room_again_the_same_command_ends_as_if_nothing_had_happened(
    workdir: Path, filled: tuple[str, Ended], single: Version
) -> None:
    how, _ = filled
    before = checkpoints(workdir / f"full-{how}")
    assert before and before[-1] < STEPS
    assert_same(run_training(workdir, f"full-{how}", *HOW[how]), single)


@pytest.fixture(scope="module")
def piece(workdir: Path) -> Ended:
    """The disk is full only for the second process, which writes its shard of ZeRO's state."""
    return poisoned(workdir, "piece", "disk 1 2", *HOW["zero3"])


def test_a_disk_that_is_full_only_for_the_second_process(workdir: Path, piece: Ended) -> None:
    assert_one_error(piece, "the disk is full", "where: piece/")
    assert_last_whole(workdir / "piece", 1)
    torn = next((workdir / "piece").glob("*/checkpoints/checkpoint-2"))
    assert len(list(torn.glob("global_step2/*_optim_states.pt"))) == 1


def test_checkpoints_of_another_stage_are_refused(workdir: Path, piece: Ended) -> None:
    refused = Training(workdir, "piece", *TWO, "--deepspeed", "zero2").end()
    assert_one_error(
        refused,
        "started by 2 processes with ZeRO-3",
        "cannot be resumed by 2 processes with ZeRO-2",
        "resume it as it was started, or remove piece/",
    )
    assert "self-check" not in refused.stderr, "it is known before anything is computed"
    assert_last_whole(workdir / "piece", 1)


def test_a_disk_that_is_full_for_the_last_file(workdir: Path, single: Version) -> None:
    """The first process's quota is used up as it writes the adapter; the other waits for it."""
    ended = poisoned(workdir, "end", "disk 0 end", *TWO)
    assert_one_error(ended, "the disk is full", "where: end/")
    assert_last_whole(workdir / "end", STEPS)
    assert_same(train_here(workdir, "end"), single)


def test_checkpoints_of_other_settings_are_refused(
    workdir: Path, piece: Ended, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another training's folder is put in the place of this training's own."""
    monkeypatch.chdir(workdir)
    (theirs,) = Path("piece").glob("*/checkpoints")
    other = (
        "train",
        "--method",
        "perpo",
        "--set",
        "train.methods.perpo.beta=0.5",
        "--out",
        "other",
    )
    assert perpo(*other, "--dry-run") == 0
    ours = Path(capsys.readouterr().out.split("writes")[1].split()[0])
    assert ours.parent == Path("other") and ours.name != theirs.parent.name
    shutil.copytree(theirs, ours / "checkpoints")
    assert perpo(*other) == 2
    message = capsys.readouterr().err
    assert f"belongs to another training ({theirs.parent.name}, not {ours.name})" in message
    assert "checkpoint-1" in message and f"remove {ours}/checkpoints" in message


def test_zero2_resumes_from_its_checkpoint(workdir: Path, single: Version) -> None:
    """Its checkpoint has other classes than ZeRO-3's."""
    flags = (*TWO, "--deepspeed", "zero2")
    assert Training(workdir, "zero2", *flags).terminate_at(2).code == 143
    assert_same(run_training(workdir, "zero2", *flags), single)


def test_processes_with_different_numbers_of_logits_share_the_head(
    workdir: Path, single: Version
) -> None:
    """Chunks of 9 positions in one process and of 17 in the other; no weight is kept whole."""
    settings = read_zero_config("zero3")
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (workdir / "nothing-kept.json").write_text(json.dumps(settings))
    ended = poisoned(workdir, "chunks", "chunks 1 0", *TWO, "--deepspeed", "nothing-kept.json")
    assert ended.code == 0, ended.stderr
    assert_same(trained(workdir / "chunks"), single)


def test_three_processes_share_four_lists_a_step_and_train_as_one(
    workdir: Path, single: Version
) -> None:
    """Under DDP; the inputs of their layers wait in the machine's memory meanwhile."""
    offload = ("train.gradient_checkpointing=true", "train.activation_offload=true")
    sets = [word for setting in offload for word in ("--set", setting)]
    assert_same(run_training(workdir, "three", "--num-processes", "3", *sets), single)


def test_two_processes_train_beside_weights_in_4_bits_as_one(workdir: Path) -> None:
    quantised = ("--set", "model.quantization=nf4", "--allow-stale")  # the full model sampled
    one = run_training(workdir, "nf4-one", *quantised)
    assert_same(run_training(workdir, "nf4-two", *quantised, "--num-processes", "2"), one)


def test_more_processes_than_lists_a_step_are_not_started(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused_at_once(workdir, monkeypatch, capsys, "--num-processes", "5")
    assert "train.batch_size is 4 lists per step, for 5 processes" in message
    assert "use at most 4 processes" in message


def test_without_deepspeed_no_process_is_started(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # as Python marks what it cannot import
    message = refused_at_once(workdir, monkeypatch, capsys, *HOW["zero3"])
    assert "train.deepspeed needs DeepSpeed" in message
    assert "pip install -c constraints.txt -e '.[deepspeed]'" in message


def test_without_a_compiler_no_process_is_started(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(workdir))
    monkeypatch.setattr(sys, "executable", str(workdir / "python"))  # ninja would be next to it
    message = refused_at_once(workdir, monkeypatch, capsys, *TWO, "--deepspeed", "zero3-offload")
    assert "g++ and ninja is missing" in message and "apt-get install g++ ninja-build" in message


def refused_at_once(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: str
) -> str:
    """The message of a command that starts no process and exits with 2."""
    monkeypatch.chdir(workdir)
    started: list[Any] = []
    monkeypatch.setattr(launch, "start", lambda *given: started.append(given))
    assert perpo("train", "--out", "refused", *flags) == 2
    assert not started
    return capsys.readouterr().err


def test_a_zero_checkpoint_without_its_files_is_not_resumed() -> None:
    """DeepSpeed itself would warn, and leave the weights as they are."""
    engine = SimpleNamespace(load_checkpoint=lambda *_, **__: (None, {}))
    with pytest.raises(ArtifactError, match="lacks DeepSpeed's files"):
        load_zero_checkpoint(engine, "checkpoint-3")


def test_a_pickle_in_a_zero_checkpoint_runs_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state": Evil()}, tmp_path / "states.pt")

    def load(*_: Any, **__: Any) -> Any:
        return torch.load(tmp_path / "states.pt", weights_only=False), {}

    with pytest.raises(ArtifactError, match="DeepSpeed did not write this checkpoint"):
        load_zero_checkpoint(SimpleNamespace(load_checkpoint=load), "checkpoint-3")
    assert not (tmp_path / "ran").exists() and FORCE_GUARD not in os.environ
