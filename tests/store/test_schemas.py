"""The columns of tables, read through their schemas."""

import subprocess
import sys
from pathlib import Path

import pytest

from perpo_pipeline.store.schemas import ALL, PROMPTS


def test_only_columns_of_the_table_can_be_picked() -> None:
    assert PROMPTS.pick("prompt_id", "task", role="truth")[:3] == ["prompt_id", "task", "gt_text"]
    with pytest.raises(KeyError, match="'prompts' has no column gt_bax"):
        PROMPTS.pick("prompt_id", "gt_bax")
    with pytest.raises(KeyError, match="turth"):
        PROMPTS.pick("prompt_id", role="turth")


@pytest.mark.parametrize("name", ALL)
def test_every_role_names_columns_of_its_table(name: str) -> None:
    columns = ALL[name].columns.names
    assert all(set(role) <= set(columns) for role in ALL[name].roles.values())


# A truth column that is declared in the schema alone, before any reader of it is imported.
NEW_TRUTH = """
import sys
from dataclasses import replace
import pyarrow as pa
from perpo_pipeline.store import schemas

truth = (*schemas.PROMPTS.roles["truth"], "gt_points")
schemas.PROMPTS = replace(
    schemas.PROMPTS,
    columns=schemas.PROMPTS.columns.append(pa.field("gt_points", pa.list_(pa.float64()))),
    roles={**schemas.PROMPTS.roles, "truth": truth},
)
schemas.ALL["prompts"] = schemas.PROMPTS

from perpo_pipeline import cli
for command in (
    ["prepare", "--config", "r.yaml", "--split", "train"],
    ["sample", "--config", "r.yaml", "--quiet"],
    ["score", "--config", "r.yaml", "--reward", "points_reward:reward"],
):
    try:
        cli.main(command)
    except SystemExit as ended:
        assert not ended.code, ended
"""
REWARD = """
def reward(completions, **columns):
    assert columns["gt_points"] == [None] * len(completions)
    return [0.5 for _ in completions]
"""
CONFIG = """
run: r
model: {device: cpu}
prepare: {train: {source: testbed, num_prompts: 3}}
sample: {num_samples: 2, max_new_tokens: 4}
eval: {splits: [train]}
"""


def test_a_truth_column_of_the_schema_reaches_the_artifact_and_every_reader(
    tmp_path: Path,
) -> None:
    (tmp_path / "r.yaml").write_text(CONFIG)
    (tmp_path / "points_reward.py").write_text(REWARD)
    script = (
        NEW_TRUTH
        + """
from perpo_pipeline.evaluate.summarise import QUESTION_COLUMNS
from perpo_pipeline.rewards.scoring import TRUTH_COLUMNS
from perpo_pipeline.store.artifacts import open_version
from pathlib import Path

assert "gt_points" in open_version(Path("data/r/prompts/train")).table().column_names
assert "gt_points" in QUESTION_COLUMNS and "gt_points" in TRUTH_COLUMNS
assert open_version(Path("data/r/scores/train")).table()["reward"].to_pylist() == [0.5] * 6
print("found everywhere")
"""
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert "found everywhere" in done.stdout, done.stderr[-2000:]
