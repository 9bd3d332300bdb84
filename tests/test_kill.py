"""A stage killed before or after any write or rename gives the same rows when it runs again.

The next command sees only whole artifacts of the killed one, never partial ones.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from forked_commands import ForkedCommand, start_perpo
from killing import KILL_EVERY, kill_everywhere
from safetensors.torch import load_file

from perpo_pipeline.store.artifacts import Version, damaged_files, open_version

CONFIG = """
run: k
model: {id: testbed, dtype: float32, device: cpu}
prepare:
  train: {source: testbed, num_prompts: 6}
  test: {source: testbed, num_prompts: 4}
sample: {num_samples: 4, max_new_tokens: 24, batch_size: 2, prompts_per_part: 4}
filter: {min_margin: 0.01}
train:
  batch_size: 2
  max_tokens_per_forward: 300
  checkpoint_every: 1
  learning_rate: 1.0e-3
  lora: {rank: 2, alpha: 4}
  methods: {perpo: {beta: 1.0}}
eval: {max_new_tokens: 24, batch_size: 2, prompts_per_part: 2, models: [base], conditions: []}
report: {num_resamples: 100, pictures: 1}
"""
STAGES = ["prepare", "sample", "score", "filter", "train", "eval", "report"]
ARTIFACTS = {
    "prepare": ["prompts/train"],
    "sample": ["samples/train"],
    "score": ["scores/train"],
    "filter": ["preferences/train"],
    "train": ["reference/train", "adapter/perpo"],
    "eval": ["predictions/base@test", "metrics/base@test"],
    "report": ["report/default"],
}
WALL_CLOCK = ["tokens_per_s"]


def run_stage(workdir: Path, stage: str) -> None:
    out, err = workdir / "out", workdir / "err"
    run = start_perpo(
        *(stage, "--config", "k.yaml", "--quiet"),
        folder=workdir,
        environment=os.environ,
        out=out,
        err=err,
    )
    assert run.wait() == 0, err.read_text()


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without stages; each test adds its stage, in order."""
    workdir = tmp_path_factory.mktemp("kill")
    (workdir / "k.yaml").write_text(CONFIG)
    (workdir / "data").mkdir()
    return workdir


def rows_of(version: Version) -> dict[str, pa.Table]:
    tables = {record["table"] for record in version.manifest["parts"]}
    return {name: version.table(name) for name in tables}


def assert_same(found: Version, expected: Version) -> None:
    assert damaged_files(found) == []
    assert found.fingerprint == expected.fingerprint
    wanted, got = rows_of(expected), rows_of(found)
    assert got.keys() == wanted.keys()
    for name, table in wanted.items():
        assert_same_rows(got[name], table)
    for weights in expected.path.glob("*.safetensors"):
        ours, theirs = load_file(found.path / weights.name), load_file(weights)
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            assert float((ours[key] - tensor).abs().max()) <= 1e-6


def assert_same_rows(got: pa.Table, wanted: pa.Table) -> None:
    kept = [name for name in wanted.column_names if name not in WALL_CLOCK]
    left, right = pl.DataFrame(got.select(kept)), pl.DataFrame(wanted.select(kept))
    assert left.equals(right) or _close(left, right)


def _close(left: pl.DataFrame, right: pl.DataFrame) -> bool:
    """Equal except for the last digits of floats."""
    floats = [name for name, kind in right.schema.items() if kind == pl.Float64]
    if not left.drop(floats).equals(right.drop(floats)):
        return False
    distance = (left.select(floats) - right.select(floats)).select(pl.all().abs().max())
    return all((value or 0.0) <= 1e-5 for value in distance.row(0))


@pytest.mark.slow
def test_an_evaluation_killed_in_two_processes_ends_in_one_with_the_same_rows(
    tmp_path: Path,
) -> None:
    """Twelve parts of one prompt; the parent is killed as soon as one of them is there."""
    more = CONFIG.replace("num_prompts: 4", "num_prompts: 12")
    (tmp_path / "k.yaml").write_text(more.replace("prompts_per_part: 2", "prompts_per_part: 1"))
    run_stage(tmp_path, "prepare")
    out, err = tmp_path / "out", tmp_path / "err"
    command = ("eval", "--config", "k.yaml", "--quiet", "--set", "eval.num_gpus=2")
    killed = start_perpo(
        *command, folder=tmp_path, environment=os.environ, out=out, err=err, forks=True
    )
    predictions = tmp_path / "data/k/predictions/base@test"
    while not (parts := list(predictions.glob("*/part-*.parquet"))):
        assert killed.poll() is None, err.read_text()
        time.sleep(0.001)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert len(list(predictions.glob("*/part-*.parquet"))) < 12, "it was killed in mid-run"
    written = parts[0].stat().st_mtime_ns
    run_stage(tmp_path, "eval")
    resumed = open_version(predictions)
    assert parts[0].stat().st_mtime_ns == written, "what was written is kept"
    rows = resumed.table()
    shutil.rmtree(predictions)
    run_stage(tmp_path, "eval")
    assert open_version(predictions).fingerprint == resumed.fingerprint
    assert_same_rows(rows, open_version(predictions).table())


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_anywhere_ends_with_the_same_rows(
    upstream: Path, tmp_path: Path, stage: str
) -> None:
    output = tmp_path / "outcome.json"
    subprocess.run(
        ["cp", "-r", str(upstream / "data"), str(upstream / "k.yaml"), str(tmp_path)], check=True
    )
    out, err = tmp_path / "out", tmp_path / "err"
    finished = ForkedCommand(
        kill_everywhere,
        ["k.yaml", stage, str(output)],
        folder=tmp_path,
        environment=os.environ,
        out=out,
        err=err,
    )
    assert finished.wait() == 0, err.read_text()
    outcome = json.loads(output.read_text())
    assert outcome["reference"] == 0
    least = "started, part, manifest and current: each a write and a rename, before and after"
    assert outcome["events"] >= 16 >= KILL_EVERY, least
    assert len(outcome["outcomes"]) == outcome["events"]
    for entry in outcome["outcomes"]:
        if entry["kill_at"] % KILL_EVERY == 0:
            assert entry["killed"] == -9, f"the kill at event {entry['kill_at']} did not happen"
            assert entry["left"] == entry["copied"], "a kill leaves what the copy holds"
        assert entry["resumed"] == 0, f"killed at event {entry['kill_at']}, not resumable"
        for artifact in ARTIFACTS[stage]:
            found = open_version(tmp_path / f"killed-{entry['same_as']}/data/k" / artifact)
            assert_same(found, open_version(tmp_path / "uninterrupted/data/k" / artifact))
    run_stage(upstream, stage)
