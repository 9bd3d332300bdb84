"""`perpo sample` with backend vllm as a user runs it: killed, resumed, and in two processes.

The two processes are new Pythons, as a user's are; those of test_evaluation_stage.py are forked.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forked_commands import ForkedCommand, start_perpo
from tiny_models import noise_image

from perpo_pipeline.store.artifacts import Version, open_version

NUM_PROMPTS, NUM_SAMPLES, PROMPTS_PER_PART = 8, 20, 2
CONFIG = """
run: r
model: {{id: {model}, dtype: float32}}
prepare:
  train: {{source: jsonl, path: data.jsonl, task: vqa}}
  test: {{source: jsonl, path: data.jsonl, task: vqa}}
sample:
  {{backend: vllm, num_samples: {num_samples}, max_new_tokens: 40,
    prompts_per_part: {prompts_per_part}}}
"""
FIRST_PART_S = 120


@pytest.fixture(scope="module")
def prepared(
    hub_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The folder of a run with prepared prompts."""
    folder = tmp_path_factory.mktemp("run")
    lines = []
    for number in range(NUM_PROMPTS):
        noise_image(number, 60 + 10 * number, 60).save(folder / f"{number}.png")
        prompt = "Where is the red square? " * (1 + number % 3)
        lines.append(json.dumps({"image": f"{number}.png", "prompt": prompt, "gt_text": "x"}))
    (folder / "data.jsonl").write_text("\n".join(lines))
    (folder / "r.yaml").write_text(
        CONFIG.format(
            model=hub_model("llava"), num_samples=NUM_SAMPLES, prompts_per_part=PROMPTS_PER_PART
        )
    )
    finish(folder, start(folder, "prepare"))
    yield folder


def start(folder: Path, *arguments: str) -> ForkedCommand:
    return start_perpo(
        *arguments,
        "--config",
        "r.yaml",
        folder=folder,
        environment=os.environ,
        out=folder / "out",
        err=folder / "err",
    )


def finish(folder: Path, command: ForkedCommand) -> None:
    assert command.wait() == 0, (folder / "err").read_text()


def sample(folder: Path, out: str, *arguments: str) -> Version:
    finish(folder, start(folder, "sample", "--out", out, *arguments))
    return open_version(folder / out)


def wait_for_part(folder: Path, process: ForkedCommand) -> Path:
    """The first part that a running stage has written."""
    deadline = time.monotonic() + FIRST_PART_S
    while time.monotonic() < deadline and process.poll() is None:
        if parts := sorted(folder.glob("*/part-*.parquet")):
            return parts[0]
        time.sleep(0.01)
    process.kill()
    raise AssertionError(f"no part was written: {(folder.parent / 'err').read_text()}")


@pytest.fixture(scope="module")
def undisturbed(prepared: Path) -> Version:
    return sample(prepared, "undisturbed")


def rows_of(version: Version) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = version.table().to_pylist()
    return rows


def test_every_prompt_has_its_twenty_rows(undisturbed: Version) -> None:
    rows = rows_of(undisturbed)
    keys = [(row["prompt_id"], row["sample_id"]) for row in rows]
    assert len(set(keys)) == len(keys) == NUM_PROMPTS * NUM_SAMPLES
    assert all(row["sampler_logprob"] < 0 for row in rows)
    assert undisturbed.manifest["settings"]["backend"] == "vllm"


def test_a_killed_and_restarted_run_gives_the_same_rows(
    prepared: Path, undisturbed: Version
) -> None:
    process = start(prepared, "sample", "--out", "killed")
    first = wait_for_part(prepared / "killed", process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    parts = len(list(first.parent.glob("part-*.parquet")))
    assert 1 <= parts < NUM_PROMPTS / PROMPTS_PER_PART, "it was killed in mid-run"
    written = first.stat().st_mtime_ns
    resumed = sample(prepared, "killed")
    assert rows_of(resumed) == rows_of(undisturbed)
    assert first.stat().st_mtime_ns == written, "existing parts are kept"


def test_two_processes_give_the_same_rows(prepared: Path, undisturbed: Version) -> None:
    shared = sample(prepared, "two", "--set", "sample.num_gpus=2")
    assert shared.fingerprint == undisturbed.fingerprint
    assert rows_of(shared) == rows_of(undisturbed)
