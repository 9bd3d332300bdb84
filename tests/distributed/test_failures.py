"""Bad input, a full disk and the like in two real processes: one clear error, nothing spoilt.

What fails in one process only is brought about by `POISON`, which Python imports at its start.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from distributed.starting import (
    CONFIG,
    Ended,
    Training,
    checkpoints,
    largest_difference,
    loss_difference,
    run_training,
)
from safetensors.torch import load_file

from perpo_pipeline.artifacts import Version
from perpo_pipeline.cli import main

pytestmark = pytest.mark.distributed

SMALL = {
    "num_prompts: 24": "num_prompts: 16", "num_samples: 6": "num_samples: 4",
    "max_lists: 19": "max_lists: 12",
    "checkpoint_every: 3": "checkpoint_every: 1",
}  # fmt: skip
STEPS = 6  # 12 lists, 4 a step, two epochs; a checkpoint after each
TWO = ("--num-processes", "2")
HOW = {"ddp": TWO, "zero3": (*TWO, "--deepspeed", "zero3")}
FIX = "lower train.learning_rate, or look at these prompts with `perpo inspect`"

POISON = """
import os, sys

if "RANK" in os.environ and "perpo_pipeline.cli" in sys.orig_argv:
    os.environ["DS_ACCELERATOR"] = "cpu"
    import errno
    import torch
    from perpo_pipeline.train.trainer import ListTrainer

    what, rank, step = os.environ["POISON"].split()
    forward_backward, save = ListTrainer._forward_backward, torch.save

    def poisoned(self, model, batch, *rest):
        if self.state.global_step + 1 == int(step):
            if what == "loss":
                batch.ref_logps.fill_(float("nan"))
            else:
                backward = self.accelerator.backward
                self.accelerator.backward = lambda loss: backward(loss * float("inf"))
        return forward_backward(self, model, batch, *rest)

    def full(what, path, *rest, **named):
        if f"checkpoint-{step}" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return save(what, path, *rest, **named)

    if rank == os.environ["RANK"]:
        if what == "disk":
            torch.save = full
        else:
            ListTrainer._forward_backward = poisoned
"""


def perpo(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--config", "d.yaml", "--quiet"])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its preferences, and the poison beside it."""
    folder = tmp_path_factory.mktemp("failures")
    config = CONFIG
    for ours, theirs in SMALL.items():
        assert ours in config
        config = config.replace(ours, theirs)
    (folder / "d.yaml").write_text(config)
    (folder / "poison").mkdir()
    (folder / "poison/sitecustomize.py").write_text(POISON)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for stage in ("prepare", "sample", "score", "filter"):
            assert perpo(stage) == 0
    return folder


@pytest.fixture(scope="module")
def ddp(workdir: Path) -> Version:
    """Trained by two processes without interruption."""
    return run_training(workdir, "ddp", *TWO)


@pytest.fixture(scope="module")
def zero3(workdir: Path) -> Version:
    """The same under ZeRO-3."""
    return run_training(workdir, "zero3", *HOW["zero3"])


def poisoned(workdir: Path, out: str, what: str, *flags: str) -> Ended:
    """Train where `what`, "KIND RANK STEP", goes wrong."""
    path = os.pathsep.join([str(workdir / "poison"), os.environ.get("PYTHONPATH", "")])
    return Training(workdir, out, *flags, PYTHONPATH=path, POISON=what).end()


def assert_one_error(ended: Ended, *parts: str) -> None:
    """One message to the user, that of the process where it began, and the user's exit code."""
    assert ended.code == 2, ended.stderr
    assert ended.stderr.count("perpo: error:") == 1, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    for part in parts:
        assert part in ended.stderr, (part, ended.stderr)
    assert ended.seconds < 60


def assert_last_whole(out: Path, step: int) -> None:
    """The newest whole checkpoint is that of `step`, and its weights are numbers."""
    assert checkpoints(out)[-1] == step
    saved = load_file(next(out.glob(f"*/checkpoints/checkpoint-{step}/adapter_model.safetensors")))
    assert saved and all(bool(weight.isfinite().all()) for weight in saved.values())


@pytest.mark.parametrize(("kind", "how"), [("loss", "ddp"), ("gradient", "zero3")])
def test_what_is_not_finite_in_one_process_ends_all_before_it_reaches_the_weights(
    workdir: Path, how: str, kind: str
) -> None:
    ended = poisoned(workdir, f"{kind}-{how}", f"{kind} 1 3", *HOW[how])
    what = {"loss": "the loss is [nan", "gradient": "the gradient's norm is "}[kind]
    assert_one_error(ended, what, "at step 3", "where: prompts ", FIX)
    assert_last_whole(workdir / f"{kind}-{how}", 2)


def test_a_full_disk_at_a_checkpoint_leaves_the_one_before(workdir: Path, zero3: Version) -> None:
    """Under ZeRO each process writes its own piece: here only the second finds no room."""
    ended = poisoned(workdir, "disk", "disk 1 3", *HOW["zero3"])
    assert_one_error(ended, "the disk is full", "where: ", "free some space")
    assert_last_whole(workdir / "disk", 2)
    version = run_training(workdir, "disk", *HOW["zero3"])
    assert loss_difference(version, zero3) < 1e-6
    assert largest_difference(version, zero3) < 1e-6


def test_a_disk_that_is_really_full(workdir: Path, ddp: Version, tmp_path: Path) -> None:
    """A file system of a few megabytes: room for some checkpoints, and then for none."""
    with small_disk(tmp_path / "small") as disk:
        (workdir / "small").symlink_to(disk)
        ended = Training(workdir, "small", *HOW["ddp"]).end()
        assert_one_error(ended, "the disk is full", "free some space")
        kept = checkpoints(disk)
        assert kept and kept[-1] < STEPS
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        version = run_training(workdir, "small", *HOW["ddp"])
        assert loss_difference(version, ddp) < 1e-6
        assert largest_difference(version, ddp) < 1e-6


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A file system for `Training`'s files; skips where none may be mounted."""
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1600k", "tmpfs", str(place)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"needs to mount a file system (root): {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
