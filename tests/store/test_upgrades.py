"""Every older schema version is read as today's: golden files of all versions, and what is new."""

import json
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store import upgrades
from perpo_pipeline.store.artifacts import SCHEMA_VERSION_KEY, open_version, read_part
from perpo_pipeline.store.schemas import ALL
from perpo_pipeline.store.writing import Recipe, open_writer

GOLDEN = Path(__file__).parent.parent / "golden"
OLDER = [
    (name, version) for name, table in sorted(ALL.items()) for version in range(1, table.version)
]
# What a column that an older version lacks is filled with; null unless it is listed.
FILLED = {
    ("prompts", "image_notes"): [],
    ("prompts", "place"): "",
    ("errors", "place"): "",
    ("metrics", "dataset"): "all",
}


def shown(values: object) -> str:
    """Every value as text, in which NaN is equal to itself."""
    return json.dumps(values, sort_keys=True, default=repr)


@pytest.fixture(autouse=True)
def _new_command() -> None:
    upgrades.forget_announced()


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_raised_schema_version_brings_a_step_and_keeps_the_golden_files(name: str) -> None:
    """Otherwise whoever has artifacts of the version before cannot read them any more."""
    version = ALL[name].version
    assert len(upgrades.STEPS.get(name, ())) == version - 1, "store/upgrades.py lacks a step"
    for older in range(1, version + 1):
        file = GOLDEN / f"{name}-v{older}.parquet"
        assert file.is_file(), f"tests/golden lacks {file.name}"
        assert pq.read_schema(file).metadata[SCHEMA_VERSION_KEY] == str(older).encode()


@pytest.mark.parametrize(("name", "version"), OLDER)
def test_a_golden_file_of_every_older_version_is_read_as_today(name: str, version: int) -> None:
    file, today = GOLDEN / f"{name}-v{version}.parquet", ALL[name].columns
    stored, read = pq.read_table(file), read_part(file, table=name)
    assert stored.num_rows == read.num_rows > 0
    assert read.schema.names == today.names
    assert read.schema.types == today.types
    rows = zip(stored.to_pylist(), read.to_pylist(), strict=True)
    for older, newer in rows:
        filled = {column: FILLED.get((name, column)) for column in today.names}
        assert shown(newer) == shown({**filled, **older})


@pytest.mark.parametrize(("name", "version"), OLDER)
def test_any_columns_of_an_older_part_can_be_read_alone(name: str, version: int) -> None:
    file = GOLDEN / f"{name}-v{version}.parquet"
    whole = read_part(file, table=name)
    for column in whole.column_names:
        alone = read_part(file, [column], name)
        assert alone.column_names == [column]
        assert shown(alone[column].to_pylist()) == shown(whole[column].to_pylist())


def write_older(root: Path, version: int) -> Path:
    """A version of prompts whose parts and manifest are those of an older program."""
    with open_writer(root, Recipe("prompts", "train", "prepare", 1, {})) as writer:
        writer.write_part(0, [])
        path = writer.finish().path
    rows = pq.read_table(GOLDEN / f"prompts-v{version}.parquet")
    pq.write_table(rows, path / "part-00000.parquet")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "schema_version": version}))
    return path


def test_an_older_artifact_is_read_through_all_readers_and_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = open_version(write_older(tmp_path, 4), "prompts")
    columns = ["prompt_id", "gt_point", "place"]
    key = version.table(columns=["prompt_id"])["prompt_id"].to_pylist()
    assert version.table()["gt_point"].to_pylist() == [None]
    assert set(version.part(0, columns).column_names) == set(columns)
    assert [part["prompt_id"].to_pylist() for part in version.batches(columns)] == [key]
    assert pl.DataFrame(version.part(0))["gt_point"].null_count() == 1
    said = capsys.readouterr()
    today = ALL["prompts"].version
    assert said.err == (
        f"reads prompts of schema version 4, upgraded in memory to version {today}\n"
    )
    assert said.out == ""


def test_only_the_first_of_several_processes_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    read_part(GOLDEN / "prompts-v4.parquet", table="prompts")
    assert capsys.readouterr().err == ""


def test_a_part_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    rows = pq.read_table(GOLDEN / "errors-v2.parquet")
    newer = rows.replace_schema_metadata({SCHEMA_VERSION_KEY: b"99"})
    pq.write_table(newer, tmp_path / "errors.parquet")
    with pytest.raises(ArtifactError, match="not version 99"):
        read_part(tmp_path / "errors.parquet", table="errors")


def test_a_step_gets_the_columns_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def split(table: pa.Table) -> pa.Table:
        length = pa.array([len(key) for key in table["prompt_id"].to_pylist()], pa.int32())
        return table.append_column("sample_id", length)

    monkeypatch.setitem(upgrades.STEPS, "dropped", (upgrades.Step(split, ("prompt_id",)),))
    read = read_part(GOLDEN / "dropped-v1.parquet", ["sample_id"], "dropped")
    assert read.column_names == ["sample_id"]
    assert read["sample_id"].to_pylist() == [16] * read.num_rows
