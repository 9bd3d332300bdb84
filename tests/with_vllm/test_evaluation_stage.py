"""`perpo eval` with backend vllm as a user runs it: killed, resumed, in two processes, every image.

Its rows are those of transformers, to the last column.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from forked_commands import ForkedCommand, start_perpo

from perpo_pipeline.store.artifacts import open_version

NUM_PROMPTS, PROMPTS_PER_PART = 12, 2
CONFIG = f"""
run: r
model: {{id: testbed, dtype: float32, device: cpu}}
prepare:
  train: {{source: testbed, num_prompts: 2}}
  test: {{source: testbed, num_prompts: {NUM_PROMPTS}}}
eval:
  {{max_new_tokens: 32, prompts_per_part: {PROMPTS_PER_PART}, models: [base], condition_prompts: 4}}
"""
FIRST_PART_S = 120
EVALUATIONS = ("base@test", "base-other-image@test", "base-blank-image@test")
Rows = list[dict[str, Any]]


def start(folder: Path, *arguments: str) -> ForkedCommand:
    return start_perpo(
        *arguments,
        "--config",
        "r.yaml",
        "--quiet",
        folder=folder,
        environment=os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"},
        out=folder / "out",
        err=folder / "err",
        forks=True,
    )


def finish(folder: Path, command: ForkedCommand) -> None:
    assert command.wait() == 0, (folder / "err").read_text()


def predictions(folder: Path, run: str, evaluation: str = "base@test") -> Rows:
    place = folder / "data" / run / "predictions" / evaluation
    rows: Rows = open_version(place).table().to_pylist()
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with prepared prompts, answered by transformers; others are beside it."""
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "r.yaml").write_text(CONFIG)
    finish(folder, start(folder, "prepare"))
    finish(folder, start(folder, "eval", "--backend", "transformers"))
    for name in ("killed", "two"):
        (folder / "data" / name).mkdir()
        (folder / "data" / name / "prompts").symlink_to(folder / "data/r/prompts")
    return folder


def test_a_killed_evaluation_ends_with_the_rows_of_transformers(folder: Path) -> None:
    """The second command also answers with wrong images: an engine follows another."""
    process = start(folder, "eval", "--backend", "vllm", "--run", "killed")
    place = folder / "data/killed/predictions/base@test"
    deadline = time.monotonic() + FIRST_PART_S
    while not (parts := sorted(place.glob("*/part-*.parquet"))) and process.poll() is None:
        assert time.monotonic() < deadline, (folder / "err").read_text()
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = len(list(place.glob("*/part-*.parquet")))
    assert 1 <= kept < NUM_PROMPTS / PROMPTS_PER_PART, "it was killed in mid-run"
    written = parts[0].stat().st_mtime_ns
    finish(folder, start(folder, "eval", "--backend", "vllm", "--run", "killed"))
    assert parts[0].stat().st_mtime_ns == written, "existing parts are kept"
    for evaluation in EVALUATIONS:
        found = predictions(folder, "killed", evaluation)
        assert found == predictions(folder, "r", evaluation)
    assert len(predictions(folder, "killed")) == NUM_PROMPTS
    assert open_version(place).manifest["settings"]["backend"] == "vllm"


def test_two_processes_give_the_same_rows(folder: Path) -> None:
    arguments = ["--backend", "vllm", "--run", "two", "--evaluation", "base@test"]
    finish(folder, start(folder, "eval", *arguments, "--set", "eval.num_gpus=2"))
    assert predictions(folder, "two") == predictions(folder, "r")
