"""Artifacts: whole or not at all, never overwritten, resumable, readable by others."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import IO

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store import artifacts, schemas
from perpo_pipeline.store.artifacts import Version, damaged_files, input_of, open_version
from perpo_pipeline.store.atomic import write_atomically
from perpo_pipeline.store.finding import reuse_complete
from perpo_pipeline.store.writing import Recipe, adopt_files, open_writer

ROWS = [
    {"prompt_id": "a", "sample_id": i, "reward": i / 4, "parse_ok": True, "box": None}
    for i in range(4)
]


def recipe(**settings: object) -> Recipe:
    return Recipe("scores", "train", "score", 1, {"reward": "iou", **settings})


def write(root: Path, which: Recipe | None = None) -> Version:
    with open_writer(root, which or recipe()) as writer:
        writer.write_part(0, ROWS[:2])
        writer.write_part(1, ROWS[2:])
        return writer.finish({"rows": 4})


def test_rows_come_back_in_order_through_current(tmp_path: Path) -> None:
    write(tmp_path)
    version = open_version(tmp_path, "scores")
    assert version.table().to_pylist() == ROWS
    assert version.manifest["rows"] == 4
    assert (tmp_path / "current").read_text().strip() == version.path.name


def test_parts_are_in_the_order_of_their_numbers_beyond_five_digits(tmp_path: Path) -> None:
    with open_writer(tmp_path, recipe()) as writer:
        writer.write_part(100_000, ROWS[2:])
        writer.write_part(99_999, ROWS[:2])
        names = [f"part-{index}.parquet" for index in (99_999, 100_000)]
        assert [part.name for part in writer.parts()] == names
        rows = [row for part in writer.read_rows(["sample_id"]) for row in part.to_pylist()]
        assert [row["sample_id"] for row in rows] == [0, 1, 2, 3]
        version = writer.finish()
    assert [part["file"] for part in version.manifest["parts"]] == names
    assert version.table().to_pylist() == ROWS


def test_a_file_that_is_not_finished_leaves_nothing_behind(tmp_path: Path) -> None:
    """Whatever ends the writing, Ctrl-C and a library's own error included."""
    for error in (KeyboardInterrupt(), ValueError("too large")):

        def fails(sink: IO[bytes], error: BaseException = error) -> None:
            sink.write(b"half")
            raise error

        with pytest.raises(type(error)):
            write_atomically(tmp_path / "o.webp", fails)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 0), (1, 3), (17, 20), (30, 40), (38, 99), (40, 41)]
)
def test_some_rows_are_those_of_the_whole_table(tmp_path: Path, start: int, stop: int) -> None:
    rows = [ROWS[0] | {"sample_id": i} for i in range(40)]
    with open_writer(tmp_path, recipe()) as writer:
        for index, part in enumerate((rows[:2], rows[2:37], rows[37:])):
            writer.write_part(index, part)
        version = writer.finish()
    columns = ["sample_id", "reward"]
    found = version.rows(range(start, stop), columns)
    assert found.column_names == columns
    assert found.equals(version.table(columns=columns).slice(start, max(0, stop - start)))
    assert version.rows(range(start, stop)).to_pylist() == rows[start:stop]


def test_a_changed_setting_makes_a_version_beside_the_old_one(tmp_path: Path) -> None:
    first, second = write(tmp_path), write(tmp_path, recipe(extra=1))
    assert first.path != second.path
    assert open_version(first.path).table().to_pylist() == ROWS
    assert open_version(tmp_path).path == second.path


def test_going_back_to_an_old_setting_finds_it_without_work(tmp_path: Path) -> None:
    first = write(tmp_path)
    write(tmp_path, recipe(extra=1))
    found = reuse_complete(tmp_path, recipe())
    assert found is not None and found.path == first.path
    assert open_version(tmp_path).path == first.path


def test_the_fingerprint_depends_on_settings_inputs_and_stage_not_on_notes(tmp_path: Path) -> None:
    base = recipe().fingerprint
    upstream = write(tmp_path)
    assert (
        Recipe("scores", "train", "score", 1, {"reward": "iou"}, notes={"x": 1}).fingerprint == base
    )
    assert recipe(extra=1).fingerprint != base
    assert Recipe("scores", "train", "score", 2, {"reward": "iou"}).fingerprint != base
    with_input = Recipe("scores", "train", "score", 1, {"reward": "iou"}, {"samples": upstream})
    assert with_input.fingerprint != base


def test_what_is_made_from_a_version_depends_on_the_prompts_that_failed_in_it(
    tmp_path: Path,
) -> None:
    """A prompt fails when an image is gone or a server is busy, which no setting says."""
    error = {"prompt_id": "b", "place": "data.jsonl:2", "reason": "the image is gone"}

    def made_from(root: Path, *errors: dict[str, str]) -> str:
        with open_writer(root, recipe()) as writer:
            writer.write_part(0, list(errors), table="errors")
            writer.write_part(0, ROWS)
            answers = writer.finish()
        return Recipe("metrics", "m", "eval", 1, {}, {"predictions": answers}).fingerprint

    whole = Recipe("metrics", "m", "eval", 1, {}, {"predictions": write(tmp_path / "1")})
    assert made_from(tmp_path / "2") == whole.fingerprint
    assert made_from(tmp_path / "3", error) != whole.fingerprint


def test_an_unfinished_version_is_not_readable_and_says_how_to_go_on(tmp_path: Path) -> None:
    with open_writer(tmp_path, recipe()) as writer:
        writer.write_part(0, ROWS[:2])
    with pytest.raises(ArtifactError, match=r"unfinished[\s\S]*resumes"):
        open_version(tmp_path / recipe().fingerprint)


def test_a_resumed_writer_knows_its_whole_parts_and_drops_foreign_ones(tmp_path: Path) -> None:
    with open_writer(tmp_path, recipe()) as writer:
        writer.write_part(0, ROWS[:2])
        path = writer.path
    write(tmp_path / "other", recipe(extra=1))
    foreign = tmp_path / "other" / recipe(extra=1).fingerprint / "part-00001.parquet"
    (path / "part-00001.parquet").write_bytes(foreign.read_bytes())
    (path / "part-00002.parquet").write_bytes(b"PAR1 torn")
    (path / ".part-00003.parquet.1.tmp").write_bytes(b"half")
    with open_writer(tmp_path, recipe()) as writer:
        assert [writer.has_part(i) for i in range(4)] == [True, False, False, False]
        assert not list(path.glob("*.tmp"))


def test_a_part_that_may_not_be_read_is_not_taken_for_a_torn_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_writer(tmp_path, recipe()) as writer:
        writer.write_part(0, ROWS[:2])
    part = writer.path / "part-00000.parquet"
    whole = part.read_bytes()

    def stale(path: Path) -> None:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    monkeypatch.setattr("perpo_pipeline.store.writing.pq.read_metadata", stale)
    with pytest.raises(OSError, match="Stale"), open_writer(tmp_path, recipe()):
        pass
    assert part.read_bytes() == whole


@pytest.mark.parametrize("name", ["mine.parquet", "mine-00007.parquet", "part-x.parquet"])
def test_a_resumed_writer_leaves_files_that_are_not_its_own(tmp_path: Path, name: str) -> None:
    with open_writer(tmp_path, recipe()) as writer:
        writer.write_part(0, ROWS[:2])
        (writer.path / name).write_bytes(b"mine")
    with open_writer(tmp_path, recipe()) as writer:
        assert [writer.has_part(i) for i in range(2)] == [True, False] and writer.num_rows() == 2
        assert (writer.path / name).read_bytes() == b"mine"


def test_two_writers_of_one_version_are_refused(tmp_path: Path) -> None:
    with (
        open_writer(tmp_path, recipe()),
        pytest.raises(ArtifactError, match="another process"),
        open_writer(tmp_path, recipe()),
    ):
        pass


def test_a_full_disk_is_one_clear_error_and_what_is_done_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = write(tmp_path / "earlier")
    with open_writer(tmp_path / "new", recipe()) as writer:
        writer.write_part(0, ROWS[:2])

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(ArtifactError, match="the disk is full") as caught:
                writer.write_part(1, ROWS[2:])
        assert "part-00001" in str(caught.value) and "same command" in str(caught.value)
        assert sorted(p.name for p in writer.path.glob("*.parquet")) == ["part-00000.parquet"]
        assert not list(writer.path.glob("*.tmp")) and not list(writer.path.glob(".*.tmp"))
    assert damaged_files(earlier) == []


def test_a_schema_version_from_the_future_asks_for_an_upgrade(tmp_path: Path) -> None:
    version = write(tmp_path)
    manifest = json.loads((version.path / "manifest.json").read_text())
    manifest["schema_version"] += 1
    (version.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="newer perpo made it: upgrade"):
        open_version(tmp_path)


def test_a_schema_version_that_no_step_leads_from_names_the_stage_to_rerun(tmp_path: Path) -> None:
    version = write(tmp_path)
    manifest = json.loads((version.path / "manifest.json").read_text())
    manifest["schema_version"] -= 1
    (version.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"run: perpo score$"):
        open_version(tmp_path)


def test_the_wrong_kind_of_artifact_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ArtifactError, match="a 'scores' artifact, not a 'prompts' artifact"):
        open_version(tmp_path, "prompts")


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    version = write(tmp_path)
    part = version.parts()[1]
    part.write_bytes(part.read_bytes()[:-20])
    assert damaged_files(version) == ["part-00001.parquet"]
    with pytest.raises(ArtifactError, match="part-00001"):
        version.table()


def test_what_is_in_use_is_found_in_a_folder_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"settings": {"reward": "--reward iou"}}
    first, other = replace(recipe(), options=asked), recipe(reward="giou")
    made = write(tmp_path, other)
    in_use = write(tmp_path, first)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    numbers = [errno.EROFS]

    def refuse(*_: object) -> None:
        raise OSError(numbers[0], os.strerror(numbers[0]))

    monkeypatch.setattr(os, "replace", refuse)
    for numbers[0] in (errno.EROFS, errno.EACCES, errno.EPERM):
        found = reuse_complete(tmp_path, first)
        assert found is not None and found.path == in_use.path
    for asks in (other, recipe()):  # another version, and other options of the same one
        with pytest.raises(ArtifactError, match="cannot write: Operation not permitted"):
            reuse_complete(tmp_path, asks)
    numbers[0] = errno.ENOSPC
    with pytest.raises(ArtifactError, match="the disk is full"):
        reuse_complete(tmp_path, first)
    assert {file: file.read_bytes() for file in before} == before and made.path.is_dir()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_the_system_does_not_let_be_read_is_not_to_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    version = write(tmp_path)

    def refuse(file: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(file))

    for owner, name, what in (
        (artifacts, "open_parquet", "a part"),
        (Path, "read_text", "the manifest"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, refuse)
            with pytest.raises(ArtifactError) as caught:
                version.table() if what == "a part" else artifacts.read_manifest(version.path)
        assert f"{what} cannot be read: {os.strerror(number)}" in str(caught.value)
        assert "check the" in str(caught.value) and "remove" not in str(caught.value)
        assert caught.value.where is not None and version.path.name in caught.value.where


def test_a_part_that_is_gone_or_whose_bytes_changed_is_damaged(tmp_path: Path) -> None:
    """pyarrow raises an OSError for bytes it cannot unpack, too."""
    part = write(tmp_path).parts()[0]
    content = part.read_bytes()
    part.write_bytes(content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :])
    with pytest.raises(ArtifactError, match="missing or damaged") as caught:
        artifacts.read_part(part)
    assert isinstance(caught.value.__cause__, OSError)
    part.unlink()
    with pytest.raises(ArtifactError, match="missing or damaged"):
        artifacts.read_part(part)


def test_a_manifest_without_a_name_that_every_one_has_is_damaged(tmp_path: Path) -> None:
    file = write(tmp_path).path / "manifest.json"
    whole = json.loads(file.read_text())
    for name in set(whole) - {"manifest_format", "options", "machine"}:  # which nothing reads,
        file.write_text(json.dumps({n: value for n, value in whole.items() if n != name}))
        with pytest.raises(ArtifactError, match=f"cannot be read: it has no '{name}'"):
            open_version(tmp_path)  # or which older manifests lack
    for name in ("file", "table", "rows", "sha256"):
        parts = [{n: value for n, value in p.items() if n != name} for p in whole["parts"]]
        file.write_text(json.dumps(whole | {"parts": parts}))
        with pytest.raises(ArtifactError, match=f"it has no '{name}'"):
            open_version(tmp_path)


@pytest.mark.parametrize(
    ("place", "file", "message"),
    [
        ("scores/train/0123456789abcdef", "started.json", "run, which resumes it: perpo score$"),
        ("adapter/sft/0123456789abcdef", "started.json", "perpo train --method sft$"),
        ("out/0123456789abcdef", "started.json", "run, which resumes it: perpo sample$"),
        ("metrics/a@t/0123456789abcdef", "manifest.json", "run: perpo eval --evaluation a@t$"),
        ("prompts/test", None, "run: perpo prepare --split test$"),
    ],
)
def test_what_is_unfinished_or_damaged_names_the_command_that_makes_it(
    tmp_path: Path, place: str, file: str | None, message: str
) -> None:
    directory = tmp_path / place
    directory.mkdir(parents=True)
    if file is not None:
        (directory / file).write_text('{"stage": "sample"}')
    with pytest.raises(ArtifactError, match=message):
        open_version(directory)


def test_a_version_with_missing_parts_is_not_taken_for_a_complete_one(tmp_path: Path) -> None:
    version = write(tmp_path / "run")
    for part in version.parts():
        part.unlink()
    with pytest.raises(ArtifactError, match="2 of 2 parts are missing, for example part-00000"):
        reuse_complete(tmp_path / "run", recipe())


def test_lineage_is_followed_over_several_steps_after_the_run_was_moved(tmp_path: Path) -> None:
    prompts = Recipe("prompts", "train", "prepare", 1, {})
    with open_writer(tmp_path / "run/prompts/train", prompts) as writer:
        source = writer.finish()
    middle = Recipe("samples", "train", "sample", 1, {}, {"prompts": source})
    with open_writer(tmp_path / "run/samples/train", middle) as writer:
        samples = writer.finish()
    last = Recipe("scores", "train", "score", 1, {}, {"samples": samples})
    with open_writer(tmp_path / "run/scores/train", last) as writer:
        writer.finish()
    (tmp_path / "run").rename(tmp_path / "moved")
    scores = open_version(tmp_path / "moved/scores/train")
    assert input_of(scores, "prompts").fingerprint == source.fingerprint
    with pytest.raises(ArtifactError, match="no 'adapter' artifact"):
        input_of(scores, "adapter")


def test_an_input_of_an_unreadable_schema_says_which_stages_make_it_anew(tmp_path: Path) -> None:
    """No step leads from version 0, so the prompts must be made anew."""
    with open_writer(tmp_path / "prompts", Recipe("prompts", "train", "prepare", 1, {})) as writer:
        source = writer.finish()
    drawn = Recipe("samples", "train", "sample", 1, {}, {"prompts": source})
    with open_writer(tmp_path / "samples", drawn) as writer:
        samples = writer.finish()
    manifest = json.loads((source.path / "manifest.json").read_text())
    old = json.dumps(manifest | {"schema_version": 0})
    (source.path / "manifest.json").write_text(old)
    with pytest.raises(ArtifactError, match="not version 0; 'samples' train was made") as caught:
        input_of(samples, "prompts")
    assert (
        caught.value.fix
        == "run: perpo prepare --split train, then the stages after it, up to: perpo sample"
    )


def test_rows_that_break_the_schema_are_refused(tmp_path: Path) -> None:
    bad = [{**ROWS[0], "reward": None}]
    with open_writer(tmp_path, recipe()) as writer, pytest.raises((pa.ArrowInvalid, ValueError)):
        writer.write_part(0, bad)


def test_datasets_polars_and_pandas_load_an_artifact_as_it_is(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = write(tmp_path).path
    pattern = str(path / "part-*.parquet")
    assert pl.read_parquet(pattern)["reward"].to_list() == [0.0, 0.25, 0.5, 0.75]
    frame = pd.concat(pd.read_parquet(part) for part in sorted(path.glob("part-*.parquet")))
    assert frame["reward"].tolist() == [0.0, 0.25, 0.5, 0.75]
    loaded = datasets.load_dataset(
        "parquet", data_files=pattern, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["reward"] == [0.0, 0.25, 0.5, 0.75]


GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize("name", sorted(schemas.ALL))
def test_every_schema_version_has_its_golden_file(name: str) -> None:
    """A column that changes without a new version is caught here."""
    table = schemas.ALL[name]
    golden = pq.read_schema(GOLDEN / f"{name}-v{table.version}.parquet")
    assert golden.remove_metadata().equals(table.columns)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_umask_decides_who_reads_each_file_also_those_that_a_library_made_private(
    tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        staging = tmp_path / "staging"
        staging.mkdir()
        (staging / "weights.safetensors").write_bytes(b"w")
        (staging / "weights.safetensors").chmod(0o600)
        with open_writer(tmp_path / "run", recipe()) as writer:
            writer.write_part(0, ROWS)
            adopt_files(staging, writer)
            version = writer.finish({"rows": 4})
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in version.path.iterdir()}
    assert modes == dict.fromkeys(modes, mode) and "weights.safetensors" in modes
