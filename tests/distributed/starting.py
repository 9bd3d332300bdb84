"""Start `perpo train` in real processes, watch its checkpoints, and read what it wrote."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import psutil
from safetensors.torch import load_file
from torch import Tensor

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
STEPS = 10  # 19 lists, 4 a step, two epochs: the last step of each has 3 lists
PATIENCE_S = 150


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stderr: str
    stdout: str
    seconds: float


class Training:
    """`perpo train` in a folder that has its preferences, with more in its environment."""

    def __init__(self, workdir: Path, out: str, *flags: str, **environment: str) -> None:
        self.out = workdir / out
        self.stderr, self.stdout = workdir / f"{out}.stderr", workdir / f"{out}.stdout"
        command = [
            sys.executable,
            "-m",
            "perpo_pipeline.cli",
            "train",
            "--config",
            "d.yaml",
            "--quiet",
            "--out",
            out,
            *flags,
        ]
        with self.stderr.open("w") as err, self.stdout.open("w") as told:
            self.process = subprocess.Popen(
                command,
                cwd=workdir,
                stdout=told,
                stderr=err,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            )

    def worker(self, rank: int) -> psutil.Process:
        """The process of that rank, a child of the command."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if child.environ().get("RANK") == str(rank))

    def wait_for_checkpoint(self, step: int) -> None:
        """Until a whole checkpoint of this step or a later one is there."""
        self._wait_until(lambda: any(s >= step for s in checkpoints(self.out)))

    def _wait_until(self, there: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not there():
            assert self.process.poll() is None, self.stderr.read_text()
            assert time.monotonic() < end, self.stderr.read_text()
            time.sleep(0.02)

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
    """Steps of the whole checkpoints under `out`."""
    return sorted(
        int(marker.parent.name.rsplit("-", 1)[1])
        for marker in out.glob("*/checkpoints/checkpoint-*/whole")
    )


def run_training(workdir: Path, out: str, *flags: str) -> Version:
    """Train to the end; the adapter's version, undamaged."""
    ended = Training(workdir, out, *flags).end()
    assert ended.code == 0, ended.stderr
    version = trained(workdir / out)
    assert ended.stdout.strip() == str(version.path.relative_to(workdir))
    return version


def trained(out: Path) -> Version:
    """The complete adapter under `out`, with as many steps as there must be."""
    version = open_version(out, "adapter")
    assert damaged_files(version) == []
    return version


def log_of(version: Version) -> pl.DataFrame:
    """The training log, a row a step."""
    table: Any = pl.from_arrow(version.table())
    assert table["step"].to_list() == list(range(1, table.height + 1))
    frame: pl.DataFrame = table
    return frame


def weights_of(version: Version) -> dict[str, Tensor]:
    """The saved adapter's tensors."""
    (weights,) = version.path.glob("*.safetensors")
    return load_file(weights)


def largest_difference(ours: Version, theirs: Version) -> float:
    """Over all tensors of two adapters."""
    a, b = weights_of(ours), weights_of(theirs)
    assert a.keys() == b.keys() and a
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def loss_difference(ours: Version, theirs: Version) -> float:
    """The largest over the steps."""
    a, b = log_of(ours)["loss"], log_of(theirs)["loss"]
    assert len(a) == len(b)
    return float((a - b).abs().max())  # type: ignore[arg-type]
