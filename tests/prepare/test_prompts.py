"""Prompts of another run: parts that have none in common, and prompts that have changed there."""

from pathlib import Path

import pytest

from perpo_pipeline.config.file import load_config
from perpo_pipeline.errors import InputError
from perpo_pipeline.prepare.prepare_prompts import prepare, survey
from perpo_pipeline.run import Run
from perpo_pipeline.status.check import Check
from perpo_pipeline.store.artifacts import Version

FIRST = """
run: first
data_root: {root}
prepare: {{train: {{source: testbed, num_prompts: {number}}}}}
eval: {{splits: [train]}}
"""
SECOND = """
run: second
data_root: {root}
seed: {seed}
prepare:
  train: {{source: prompts, path: {root}/first/prompts/train{part}}}
eval: {{splits: [train]}}
"""


def run_of(folder: Path, text: str, **values: object) -> Run:
    file = folder / "run.yaml"
    file.write_text(text.format(root=folder / "data", **values))
    return Run(load_config(file), quiet=True, muted=True)


def part(folder: Path, settings: str, seed: int = 0) -> Version:
    return prepare(run_of(folder, SECOND, part=settings, seed=seed), "train")


def ids(version: Version) -> list[str]:
    return list(version.table()["prompt_id"].to_pylist())


@pytest.fixture
def first(tmp_path: Path) -> Version:
    return prepare(run_of(tmp_path, FIRST, number=10), "train")


def test_parts_have_no_prompt_in_common_and_together_all(tmp_path: Path, first: Version) -> None:
    parts = [ids(part(tmp_path, f", start: {start}, num_prompts: 5")) for start in (0, 5)]
    assert sorted(parts[0] + parts[1]) == sorted(ids(first))
    assert not set(parts[0]) & set(parts[1])
    for one in parts:  # in the order of the artifact
        assert [x for x in ids(first) if x in one] == one
    assert ids(part(tmp_path, ", start: 5")) == parts[1]
    other = ids(part(tmp_path, ", num_prompts: 5", seed=1))
    assert sorted(other) != sorted(parts[0])


def test_a_part_keeps_its_prompts_if_prompts_are_added(tmp_path: Path, first: Version) -> None:
    before = set(ids(part(tmp_path, ", num_prompts: 4")))
    prepare(run_of(tmp_path, FIRST, number=12), "train")
    after = set(ids(part(tmp_path, ", num_prompts: 6")))
    added = {f"{n}" for n in (10, 11)}
    rows = part(tmp_path, "").table().to_pylist()
    new = {row["prompt_id"] for row in rows if row["source_row"].partition("/")[2] in added}
    assert before <= after and len(new) == 2 and after - before <= new | set(ids(first))


def test_rows_are_those_of_the_other_run(tmp_path: Path, first: Version) -> None:
    whole = part(tmp_path, "")
    assert whole.table().to_pylist() == first.table().to_pylist()
    assert "seed" not in whole.manifest["settings"]
    run = run_of(tmp_path, SECOND, part="", seed=0)
    assert survey(run, "train", 3).prompts == 10


def test_too_few_prompts_are_an_error(tmp_path: Path, first: Version) -> None:
    with pytest.raises(InputError) as caught:
        part(tmp_path, ", start: 8, num_prompts: 3")
    assert "the prompts are 10, and start 8 with num_prompts 3 needs 11" in str(caught.value)
    with pytest.raises(InputError, match="start 10 with num_prompts 1 needs 11"):
        part(tmp_path, ", start: 10")


def test_prompts_that_have_changed_there_are_noticed(tmp_path: Path, first: Version) -> None:
    part(tmp_path, ", num_prompts: 5")
    run = run_of(tmp_path, SECOND, part=", num_prompts: 5", seed=0)
    assert Check(run.config).find([("prompts", "train")]).silent == {}
    prepare(run_of(tmp_path, FIRST, number=12), "train")
    assert "other prompts than the source has now" in why(run)
    run = run_of(tmp_path, SECOND, part=", num_prompts: 6", seed=0)
    assert "num_prompts 5, the configuration says 6" in why(run)


def why(run: Run) -> str:
    """Why the prompts are not as configured."""
    found = Check(run.config).find([("prompts", "train")]).silent.values()
    return "; ".join(reason.text for reason in found)
