"""`perpo gc`: what nothing refers to, what it is of, and what is left for some days."""

import errno
import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from perpo_pipeline import cli
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.garbage import find_unused, shown_size
from perpo_pipeline.store.writing import Recipe, open_writer

CONFIG = """
run: r
model: {id: testbed, dtype: float32, device: cpu}
prepare: {train: {source: testbed, num_prompts: 4}, test: {source: testbed, num_prompts: 4}}
"""


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(CONFIG)
    return tmp_path


def gc(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[str], str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(["gc", "--config", "r.yaml", *arguments])
    assert not ended.value.code
    said = capsys.readouterr()
    return said.out.splitlines(), said.err


def made(
    artifact: str,
    settings: dict[str, object],
    *,
    run: str = "r",
    notes: dict[str, object] | None = None,
    **inputs: Version,
) -> Version:
    recipe = Recipe(artifact, "train", "filter", 1, settings, dict(inputs), notes or {})
    with open_writer(Path("data") / run / artifact / "train", recipe) as writer:
        (writer.path / "weights.bin").write_bytes(bytes(2_000_000))
        return writer.finish()


def test_what_no_current_leads_to_is_listed_with_size_and_settings_then_removed(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old_scores = made("scores", {"reward": {"iou": 1.0}})
    scores = made("scores", {"reward": {"giou": 1.0}})
    wide = made("preferences", {"min_margin": 0.8, "strategy": "a"}, scores=scores)
    older = made("preferences", {"min_margin": 0.4, "strategy": "a"}, scores=old_scores)
    kept = made("preferences", {"min_margin": 0.4, "strategy": "a"}, scores=scores)
    lines, said = gc(capsys)
    assert [re.split(r" {2,}", line) for line in lines] == [
        ["unused", str(path), text]
        for path, text in sorted(
            [
                (wide.path.resolve(), "2.0 MB, min_margin 0.8, in use 0.4"),
                (older.path.resolve(), "2.0 MB, made from other scores"),
                (
                    old_scores.path.resolve(),
                    "2.0 MB, reward.iou 1.0, in use null; reward.giou null, in use 1.0",
                ),
            ]
        )
    ]
    assert "gc: 3 unused (6.0 MB); --yes removes them" in said
    lines, said = gc(capsys, "--yes")
    assert [line.startswith("removed ") for line in lines] == [True] * 3
    assert "gc: 3 removed (6.0 MB)" in said
    assert kept.path.is_dir() and scores.path.is_dir()
    assert not wide.path.exists() and not older.path.exists() and not old_scores.path.exists()
    assert gc(capsys)[0] == []


def test_what_options_asked_for_and_what_is_unfinished_is_left_for_some_days(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = made("preferences", {"min_margin": 0.4})
    made("preferences", {"min_margin": 0.8})
    asked = {tried.fingerprint: {"settings": {"filter.min_margin": "--min-margin 0.4"}}}
    (tried.path.parent / "options.json").write_text(json.dumps(asked))
    begun = Recipe("samples", "train", "sample", 1, {})
    with open_writer(Path("data/r/samples/train"), begun) as writer:
        writer.note("backend", "transformers")
    lines, said = gc(capsys, "--yes")
    assert [line.split()[0] for line in lines] == ["left", "left"]
    assert "(--min-margin 0.4 asked for it)" in lines[0] and "(unfinished; " in lines[1]
    assert "gc: 2 left for 7 days (--keep-days)" in said and "gc: 0 removed (0 B)" in said
    week_ago = time.time() - 7 * 86_400 - 60
    for file in [*tried.path.iterdir(), *writer.path.iterdir()]:
        os.utime(file, (week_ago, week_ago))
    assert [line.split()[0] for line in gc(capsys, "--keep-days", "8")[0]] == ["left", "left"]
    assert [line.split()[0] for line in gc(capsys, "--yes")[0]] == ["removed", "removed"]
    assert not tried.path.exists() and not writer.path.exists()


def test_gc_leaves_a_version_that_is_being_written(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = workdir / "data/r/scores/train"
    merged = workdir / "data/r/merged/0123456789abcdef"  # a model that the writer may be reading
    merged.mkdir(parents=True)
    with open_writer(root, Recipe("scores", "train", "score", 1, {})) as writer:
        assert gc(capsys, "--keep-days", "0", "--yes")[0] == []
        assert writer.path.is_dir() and merged.is_dir()
    gc(capsys, "--keep-days", "0", "--yes")
    assert not writer.path.exists() and not merged.exists()


def test_what_other_runs_were_made_from_is_held_and_says_by_which(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = made("scores", {"reward": {"iou": 1.0}})
    lists = made("preferences", {"min_margin": 0.4}, scores=scores)  # filter.earlier of b
    given = made("preferences", {"min_margin": 0.5})  # --preferences of a training that was begun
    prompts = made("prompts", {"number": 1})  # of b's source `prompts`
    part = made("prompts", {"number": 2})  # of a round's list of sources
    model = workdir / "data/r/merged/m"  # of c's model.id
    model.mkdir(parents=True)
    unused = [made(name, {"number": 3}) for name in ("scores", "preferences", "prompts")]
    for name in ("scores", "preferences", "prompts"):
        made(name, {"number": 4})
    made("preferences", {"min_margin": 0.9}, run="b", earlier=lists)
    made("prompts", {"source": "prompts"}, run="b", notes={"path": str(prompts.path.resolve())})
    sources = {"of": [{"source": "jsonl"}, {"source": "prompts"}]}
    made("prompts", sources, run="b/round-2", notes={"paths": ["x", str(part.path.resolve())]})
    with open_writer(
        Path("data/c/adapter/dpo"), Recipe("adapter", "dpo", "train", 1, {}, {"preferences": given})
    ):
        pass
    made("samples", {}, run="c", notes={"model_id": "data/r/merged/m"})
    lines, said = gc(capsys, "--keep-days", "0", "--yes")
    held = {line.split()[1]: line for line in lines if line.startswith("held ")}
    holders = {lists.path: "b", scores.path: "b", prompts.path: "b", part.path: "b/round-2"}
    holders |= {given.path: "c", model: "c"}
    assert held.keys() == {str(path.resolve()) for path in holders}
    for path, run in holders.items():
        assert held[str(path.resolve())].endswith(f" (the run {run} was made from it)")
        assert path.is_dir()
    removed = [line.split()[1] for line in lines if line.startswith("removed ")]
    assert sorted(removed) == sorted(str(one.path.resolve()) for one in unused)
    assert "gc: 6 held by other runs: b, b/round-2, c" in said


def test_the_reference_of_the_lists_of_an_adapter_in_use_is_in_use(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sweep makes it aside, and no manifest of an adapter names it."""
    lists = made("preferences", {"min_margin": 0.4})
    model = {"model": "sha256:1"}
    reference = made("reference", {**model, "forward": "shared-prefix"}, preferences=lists)
    other = made("reference", {"model": "sha256:2"}, preferences=lists)
    made("adapter", {**model, "method": "dpo"}, preferences=lists)
    (other.path.parent / "current").unlink()
    assert [line.split()[1] for line in gc(capsys)[0]] == [str(other.path.resolve())]
    assert reference.path.is_dir()


def test_what_a_version_that_is_left_or_being_written_was_made_from_is_left_too(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, other = made("preferences", {"min_margin": 0.4}), made("preferences", {"min_margin": 0.5})
    made("preferences", {"min_margin": 0.8})
    root = Path("data/r/adapter/dpo")
    with open_writer(root, Recipe("adapter", "dpo", "train", 1, {}, {"preferences": old})):
        pass
    with open_writer(root, Recipe("adapter", "dpo", "train", 1, {}, {"preferences": other})):
        lines = gc(capsys, "--yes")[0]
    assert [line.split()[0] for line in lines] == ["left", "left"]
    assert "(unfinished; " in lines[0] and "(what is left was made from it)" in lines[1]
    assert old.path.is_dir() and other.path.is_dir()


def test_what_came_into_use_since_it_was_looked_at_is_not_removed(workdir: Path) -> None:
    one = made("scores", {"reward": {"iou": 1.0}})
    made("scores", {"reward": {"giou": 1.0}})
    (found,) = find_unused(Path("data/r"), 0.0)
    with open_writer(
        one.path.parent, Recipe("scores", "train", "filter", 1, one.manifest["settings"])
    ):
        assert found.remove() == "a process writes it now" and one.path.is_dir()
    (one.path.parent / "current").write_text(f"{one.path.name}\n")
    assert found.remove() == "it is in use now" and one.path.is_dir()
    (one.path.parent / "current").write_text("another\n")
    assert found.remove() == "" and not one.path.exists()


def test_a_size_has_three_digits_at_most() -> None:
    sizes = [shown_size(size) for size in (0, 999, 1000, 99_949, 123_456_789, 2_500_000_000)]
    assert sizes == ["0 B", "999 B", "1.0 kB", "99.9 kB", "123 MB", "2.5 GB"]


def test_versions_beside_a_damaged_current_and_what_they_came_from_are_left(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old_scores = made("scores", {"reward": {"iou": 1.0}})
    made("preferences", {"min_margin": 0.8}, scores=old_scores)
    (Path("data/r/preferences/train") / "current").write_text("")
    made("scores", {"reward": {"giou": 1.0}})
    assert gc(capsys)[0] == []
    again = made("preferences", {"min_margin": 0.8}, scores=old_scores)
    (again.path / "manifest.json").write_text("{")
    assert gc(capsys)[0] == []


def test_a_manifest_that_may_not_be_read_stops_it_before_anything_is_removed(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it names would look unused."""
    scores = made("scores", {"reward": {"giou": 1.0}})
    made("scores", {"reward": {"iou": 1.0}})
    made("preferences", {"min_margin": 0.8}, scores=scores)
    real = Path.read_text

    def read(path: Path, *arguments: str, **named: str) -> str:
        if path.name == "manifest.json" and path.parent.parent.parent.name == "preferences":
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", read)
    with pytest.raises(SystemExit) as ended:
        cli.main(["gc", "--config", "r.yaml", "--yes", "--keep-days", "0"])
    assert ended.value.code == 2 and "Stale file handle" in capsys.readouterr().err
    assert scores.path.is_dir()


def test_merged_models_are_held_by_trainings_against_them_and_wherever_gc_runs(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made("scores", {})
    names = ("start", "reference", "elsewhere", "unused")
    models = {name: workdir / "data/r/merged" / name for name in names}
    for model in models.values():
        model.mkdir(parents=True)
    made("samples", {}, run="b", notes={"model_id": "data/r/merged/start"})
    notes = {"model_id": "hub/x", "reference_model_id": "data/r/merged/reference"}
    made("adapter", {}, run="c", notes=notes)
    made("samples", {}, run="d", notes={"model_id": "../r/merged/elsewhere"})
    made("samples", {}, run="e", notes={"model_id": "no/r/merged/unused"})
    (workdir / "r.yaml").write_text(f"data_root: {workdir}/data\n{CONFIG}")
    for folder in (workdir, workdir / "data"):
        monkeypatch.chdir(folder)
        lines = gc(capsys, "--config", str(workdir / "r.yaml"))[0]
        shown = {Path(line.split()[1]).name: line for line in lines}
        assert shown["unused"].startswith("unused ")
        for name, run in (("start", "b"), ("reference", "c"), ("elsewhere", "d")):
            assert shown[name].endswith(f" (the run {run} was made from it)")


def test_what_is_no_run_or_damaged_under_the_data_root_stops_nothing(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = made("scores", {"number": 1})
    broken = made("scores", {"number": 3}).path
    manifest = json.loads((broken / "manifest.json").read_text())
    manifest |= {"settings": 5, "inputs": {"scores": 5}, "options": {"settings": 5}}
    (broken / "manifest.json").write_text(json.dumps(manifest))
    made("scores", {"number": 2})
    model = workdir / "data/r/merged/m"
    model.mkdir(parents=True)
    pointers: list[bytes] = [b"\xff\xfe\x00\x81", b"a" * 300, b"\0", b"a"]
    for number, content in enumerate(pointers):
        folder = workdir / f"data/x{number}/a/b"
        folder.mkdir(parents=True)
        (folder / "current").write_bytes(content)
    below_a_file = {"path": "../../../../r/scores/train/current/below"}
    damaged: list[dict[str, object]] = [
        {"settings": {"of": 5}},
        {"settings": {"of": ["a"]}, "notes": {"paths": ["b"]}},
        {"settings": {"of": [{}]}, "notes": {"paths": None}},
        {"settings": {"source": "prompts"}, "notes": {"path": "a\0b", "model_id": "a\0b"}},
        {"settings": {"model": []}, "inputs": {"preferences": "x"}},
        {"inputs": {"a": {"path": "a\0b"}, "b": below_a_file, "c": {"path": "a" * 300}}},
        {"settings": {"of": 5}, "inputs": {"scores": {"path": str(old.path.resolve())}}},
    ]
    for number, manifest in enumerate(damaged):
        folder = workdir / f"data/y{number}/adapter/train/abc"
        other = workdir / f"data/y{number}/reference/train/abc"
        for one in (folder, other):
            one.mkdir(parents=True)
            (one / "started.json").write_text("{}")
            (one / "manifest.json").write_text(json.dumps(manifest))
        (folder.parent / "current").write_text("abc")
    lines = gc(capsys, "--yes")[0]
    assert [line.split()[0] for line in lines] == ["removed", "held", "removed"]
    assert f"{broken.resolve()}  2.0 MB, number null, in use 2" in lines[0]
    assert str(old.path.resolve()) in lines[1] and "the run y6 was" in lines[1]  # as far as read
    assert str(model) in lines[2]


def test_cells_of_a_sweep_that_is_not_finished_are_left_for_some_days(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe("adapter", "dpo", "train", 1, {}, {"preferences": made("preferences", {})})
    made("preferences", {"number": 2})
    with open_writer(Path("data/r/adapter/dpo"), replace(recipe, aside=True)) as writer:
        cell = writer.finish()
    lines = gc(capsys, "--yes")[0]
    assert [line.split()[0] for line in lines] == ["left", "left"]
    assert "none is in use (a sweep that is not finished may need it)" in lines[0]
    assert "(what is left was made from it)" in lines[1]
    week_ago = time.time() - 7 * 86_400 - 60
    for file in cell.path.iterdir():
        os.utime(file, (week_ago, week_ago))
    assert [line.split()[0] for line in gc(capsys, "--yes")[0]] == ["removed", "removed"]
