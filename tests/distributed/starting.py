"""Start `perpo train` in real processes, watch its checkpoints, and read what it wrote."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
import torch
from distributed import forking
from forked_commands import ForkedCommand
from safetensors.torch import load_file
from torch import Tensor

from perpo_pipeline.cli import main
from perpo_pipeline.store.artifacts import Version, damaged_files, open_version

CONFIG = """
run: d
model: {id: testbed, dtype: float32, device: cpu}
prepare:
  train: {source: testbed, num_prompts: 24}
  test: {source: testbed, num_prompts: 4}
sample: {num_samples: 6, temperature: 1.0, max_new_tokens: 24, batch_size: 12}
filter: {min_margin: 0.01, max_lists: 19}
train:
  batch_size: 4
  epochs: 2
  max_tokens_per_forward: 300
  checkpoint_every: 3
  learning_rate: 1.0e-3
  lora: {rank: 4, alpha: 8}
  methods: {perpo: {beta: 1.0}}
"""
STEPS = 10  # 19 lists, 4 per step, two epochs: the last step of each has 3 lists
PATIENCE_S = 300  # for four trainings in one start, beside other work
PERPO = ("-m", "perpo_pipeline.cli")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *PERPO)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stderr: str
    stdout: str
    seconds: float


def perpo(*arguments: str) -> int:
    """Run a command on the run `d.yaml` in this process; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--config", "d.yaml", "--quiet"])
    return int(ended.value.code or 0)


def prepare_run(folder: Path, config: str) -> None:
    """Write the run's file to `d.yaml` and make its preferences."""
    (folder / "d.yaml").write_text(config)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for stage in ("prepare", "sample", "score", "filter"):
            assert perpo(stage) == 0


class Training:
    """`perpo train` in a folder that has its preferences, with more in its environment.

    `python` has the arguments of a new Python: the command itself, or torchrun with it. Without
    them the command and its processes are forked. `out` is None where the run's own folders are
    used.
    """

    def __init__(
        self,
        workdir: Path,
        out: str | None,
        *flags: str,
        python: Sequence[str] = (),
        **environment: str,
    ) -> None:
        name = out or "run"
        self.out = workdir / name
        self.stderr, self.stdout = workdir / f"{name}.stderr", workdir / f"{name}.stdout"
        into = ("--out", out) if out else ()
        command = ["train", "--config", "d.yaml", "--quiet", *into, *flags]
        own = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        self.process: subprocess.Popen[bytes] | ForkedCommand
        if not python:
            self.process = ForkedCommand(
                forking.perpo,
                [command],
                folder=workdir,
                environment=own,
                out=self.stdout,
                err=self.stderr,
            )
            return
        with self.stderr.open("w") as err, self.stdout.open("w") as paths:
            self.process = subprocess.Popen(
                [sys.executable, *python, *command], cwd=workdir, stdout=paths, stderr=err, env=own
            )

    def worker(self, rank: int) -> psutil.Process:
        """The forked process with that rank, a child of the command."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if child.name() == forking.name(rank))

    def wait_for_checkpoint(self, step: int) -> None:
        """Wait for a complete checkpoint of this step or a later one."""
        self._wait_until(lambda: any(s >= step for s in checkpoints(self.out)))

    def _wait_until(self, there: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not there():
            assert self.process.poll() is None, self.stderr.read_text()
            assert time.monotonic() < end, self.stderr.read_text()
            time.sleep(0.02)

    def terminate_at(self, step: int) -> Ended:
        """SIGTERM to the command once it has this checkpoint."""
        self.wait_for_checkpoint(step)
        self.process.send_signal(signal.SIGTERM)
        return self.end()

    def end(self) -> Ended:
        """Wait until the command has ended."""
        start = time.monotonic()
        try:
            code = self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
        seconds = time.monotonic() - start
        return Ended(code, self.stderr.read_text(), self.stdout.read_text(), seconds)


def checkpoints(out: Path) -> list[int]:
    """Steps of the complete checkpoints under `out`."""
    return sorted(
        int(marker.parent.name.rsplit("-", 1)[1])
        for marker in out.glob("*/checkpoints/checkpoint-*/whole")
    )


def run_training(
    workdir: Path, out: str, *flags: str, python: Sequence[str] = (), **environment: str
) -> Version:
    """Train to the end in other processes; the adapter's version, undamaged."""
    ended = Training(workdir, out, *flags, python=python, **environment).end()
    assert ended.code == 0, ended.stderr
    version = trained(workdir / out)
    assert ended.stdout.strip() == str(version.path.relative_to(workdir))
    return version


def train_here(workdir: Path, out: str) -> Version:
    """Train to the end in this process, with one thread as the others have."""
    stdout, threads = io.StringIO(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patched, redirect_stdout(stdout):
            patched.chdir(workdir)
            assert perpo("train", "--out", out) == 0
    finally:
        torch.set_num_threads(threads)
    version = trained(workdir / out)
    assert stdout.getvalue().strip() == str(version.path.relative_to(workdir))
    return version


def trained(out: Path) -> Version:
    """The complete adapter under `out`, undamaged."""
    version = open_version(out, "adapter")
    assert damaged_files(version) == []
    return version


def log_of(version: Version) -> pl.DataFrame:
    """The training log, one row per step."""
    table: Any = pl.from_arrow(version.table())
    assert table["step"].to_list() == list(range(1, table.height + 1))
    frame: pl.DataFrame = table
    return frame


def weights_of(version: Version) -> dict[str, Tensor]:
    """The saved adapter's tensors."""
    (weights,) = version.path.glob("*.safetensors")
    return load_file(weights)


def largest_difference(ours: Version, theirs: Version) -> float:
    """The largest difference between any two weights of two adapters."""
    a, b = weights_of(ours), weights_of(theirs)
    assert a.keys() == b.keys() and a
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def loss_difference(ours: Version, theirs: Version) -> float:
    """The largest difference over the steps."""
    a, b = log_of(ours)["loss"], log_of(theirs)["loss"]
    assert len(a) == len(b)
    return float((a - b).abs().max())  # type: ignore[arg-type]
