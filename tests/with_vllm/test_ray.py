"""`perpo sample` with engine ray and backend vllm: an actor holds vLLM's engine and releases it."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from forked_commands import ForkedCommand, start_perpo
from ray_processes import (
    actors_of,
    command_of,
    processes_below,
    wait_until,
    without_cluster,
)

from perpo_pipeline.store.artifacts import Version, open_version

CONFIG = """
run: r
model: {id: testbed, dtype: float32, device: cpu}
prepare:
  train: {source: testbed, num_prompts: 12}
  test: {source: testbed, num_prompts: 2}
sample: {backend: vllm, num_samples: 20, max_new_tokens: 40, prompts_per_part: 3}
"""
PATIENCE_S = 240
# The last variable would put vLLM's engine in its own process, which the command must prevent.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
}


def start(folder: Path, *arguments: str) -> ForkedCommand:
    """Start the command without a cluster; its output goes to a file named by the last argument."""
    log = (folder / arguments[-1]).with_suffix(".log")
    return start_perpo(
        *arguments,
        "--config",
        "r.yaml",
        folder=folder,
        environment=without_cluster() | ENVIRONMENT,
        out=log,
        err=log,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A run with prepared prompts; ends the commands that a failed test leaves running."""
    (tmp_path / "r.yaml").write_text(CONFIG)
    assert start(tmp_path, "prepare").wait(PATIENCE_S) == 0
    yield tmp_path
    for command in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if command.cwd() == str(tmp_path):
                command.kill()  # Ray's processes and the actor end with it


def sampled(folder: Path, out: str, process: ForkedCommand) -> Version:
    assert process.wait(PATIENCE_S) == 0, (folder / f"{out}.log").read_text()
    return open_version(folder / out)


def test_an_actor_with_vllm_is_killed_and_gives_the_rows_of_one_process(folder: Path) -> None:
    """All columns are equal: vLLM's batches depend only on the part, wherever it is sampled."""
    one_process = start(folder, "sample", "--out", "one")
    ray = ["--set", "sample.engine=ray", "--set", "sample.num_actors=1"]
    driver = start(folder, "sample", *ray, "--out", "ray")
    wait_until(lambda: list(folder.glob("ray/*/part-*.parquet")), driver, PATIENCE_S)
    (first,) = actors_of(driver.pid)
    assert processes_below(first) == [], (
        "an engine in its own process would outlive the actor, with the GPU's memory"
    )
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: actors_of(driver.pid) not in ([], [first]), driver, PATIENCE_S)
    (second,) = actors_of(driver.pid)
    found = sampled(folder, "ray", driver)
    assert [command_of(actor) for actor in (first, second)] == ["", ""], (
        "both have ended with the command"
    )
    assert "the actor that answered part" in (folder / "ray.log").read_text()

    expected = sampled(folder, "one", one_process)
    assert found.fingerprint == expected.fingerprint
    assert found.manifest["settings"]["backend"] == "vllm"
    rows = found.table().to_pylist()
    assert len(rows) == 12 * 20
    assert rows == expected.table().to_pylist()
