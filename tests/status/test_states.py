"""The state of each artifact of a run, and what `perpo status` prints of it."""

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from status.made_run import configured, make_node, write_file

from perpo_pipeline import cli
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.run import Run
from perpo_pipeline.status.graph import nodes
from perpo_pipeline.status.options import Options
from perpo_pipeline.status.states import State, states
from perpo_pipeline.store.artifacts import open_version
from perpo_pipeline.store.writing import Recipe, open_writer


def found(file: Path, **changed: Any) -> dict[str, State]:
    return {one.node.name: one for one in states(configured(file, **changed))}


def perpo_status(
    file: Path, capsys: pytest.CaptureFixture[str], *options: str, code: int = 0
) -> tuple[str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(["status", "--config", str(file), *options])
    assert (ended.value.code or 0) == code
    return capsys.readouterr()


def test_everything_is_missing_before_a_run_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_file(tmp_path)
    assert {one.state for one in found(file).values()} == {"missing"}
    out, _ = perpo_status(file, capsys)
    assert f"next: perpo prepare --config {file} --split train" in out
    assert not (tmp_path / "r").exists()


def test_a_finished_run_is_current_with_size_and_age(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {one.state for one in found(file).values()} == {"current"}
    one = found(file)["samples/train"]
    assert one.path is not None and one.age_s is not None and -1 < one.age_s < 600
    assert one.size == sum(f.stat().st_size for f in one.path.iterdir())
    out, _ = perpo_status(file, capsys)
    assert len(out.splitlines()) == 2 + len(nodes(configured(file))) + 1
    assert out.endswith("everything is up to date\n")


def test_a_changed_setting_is_shown_with_what_follows(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = found(file, sample__temperature=0.7, filter__min_margin=0.4)
    assert one["prompts/train"].state == one["metrics/base@test"].state == "current"
    assert list(one["samples/train"].why) == [
        "made with sample.temperature 0.5, the configuration says 0.7"
    ]
    assert list(one["preferences/train"].why) == [
        "made with filter.min_margin 0.8, the configuration says 0.4",
        "follows samples/train",
    ]
    assert list(one["adapter/perpo"].why) == ["follows samples/train, preferences/train"]
    out, _ = perpo_status(file, capsys, "--set", "filter.min_margin=0.4")
    assert "made with filter.min_margin 0.8, the configuration says 0.4" in out
    command = f"perpo filter --config {file} --set filter.min_margin=0.4"
    everything = f"perpo run --config {file} --set filter.min_margin=0.4"
    assert out.endswith(f"next: {command}\nall:  {everything}\n")
    assert all(len(line) <= 80 for line in out.splitlines() if str(file.parent) not in line)


def test_a_difference_that_an_option_asked_for_is_current_and_named(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = Options({"filter.min_margin": "--min-margin 0.4"})
    run = Run(configured(file, filter__min_margin=0.4), quiet=True, options=asked)
    make_node(run, ("preferences", "train"))
    one = found(file)
    assert one["preferences/train"].state == "current"
    assert "--min-margin 0.4 asked for it" in one["preferences/train"].asked[0]
    assert one["adapter/perpo"].state == "stale"
    rows = [json.loads(line) for line in perpo_status(file, capsys, "--json")[0].splitlines()]
    by_name = {f"{row.get('artifact')}/{row.get('variant')}": row for row in rows}
    assert by_name["preferences/train"]["asked_for"] == list(one["preferences/train"].asked)
    assert by_name["adapter/perpo"]["why"][0].startswith("made from other preferences")
    assert {"stage", "path", "size_bytes", "age_s"} < set(by_name["adapter/perpo"])


def test_versions_that_nothing_uses_are_counted(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for margin in (0.4, 0.3):  # the adapters still use that of 0.8
        run = Run(configured(file, filter__min_margin=margin), quiet=True)
        make_node(run, ("preferences", "train"))
    out, _ = perpo_status(file, capsys)
    assert "1 version (" in out and f"that nothing uses: perpo gc --config {file}" in out
    rows = [json.loads(line) for line in perpo_status(file, capsys, "--json")[0].splitlines()]
    (unused,) = [row for row in rows if row["state"] == "unused"]
    assert Path(unused["path"]).is_dir() and unused["size_bytes"] > 0


def begin(run: Run, artifact: str, **settings: Any) -> Any:
    """A writer of a new version of an artifact with other settings."""
    key = next(node.key for node in nodes(run.config) if node.artifact == artifact)
    used = open_version(run.place(*key))
    inputs = {"prompts": open_version(run.place("prompts", "train"))}
    recipe = Recipe(artifact, key[1], used.manifest["stage"], 2, settings, inputs)
    return open_writer(run.place(*key), recipe)


def with_samples(file: Path, inside: Callable[[Path], None], **changed: Any) -> None:
    """Begin samples of a changed configuration, and leave them unfinished."""
    config = configured(file, **changed)
    settings = open_version(config.run_dir / "samples" / "train").manifest["settings"]
    own = {**settings, **{key.partition("__")[2]: value for key, value in changed.items()}}
    with begin(Run(config, quiet=True), "samples", **own) as writer:
        inside(writer.path)


def test_an_interrupted_version_says_how_much_is_there(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def leave(path: Path) -> None:
        rows = [{"prompt_id": "a"}, {"prompt_id": "a"}]
        lines = [json.dumps({"fingerprint": path.name}), json.dumps(rows), '[{"prompt_']
        (path / "unfinished-00000.jsonl").write_text("\n".join(lines))
        one = found(file, sample__num_samples=2)["samples/train"]
        assert one.state == "under way" and list(one.why) == ["1 of 0 prompts"]

    with_samples(file, leave, sample__num_samples=2)
    one = found(file, sample__num_samples=2)
    assert one["samples/train"].state == "interrupted"
    out, _ = perpo_status(file, capsys, "--set", "sample.num_samples=2", "--json")
    paths = [row["path"] for row in map(json.loads, out.splitlines()) if row["path"] is not None]
    assert len(paths) == len(set(paths)), "what goes on is not also counted as unused"
    assert list(one["samples/train"].why) == ["1 of 0 prompts"]
    assert one["scores/train"].state == "stale"
    assert found(file)["samples/train"].state == "current"  # it is of other settings
    assert found(file, sample__num_samples=3)["samples/train"].state == "stale"


def test_an_interrupted_training_names_its_last_checkpoint(file: Path) -> None:
    place = file.parent / "r" / "adapter" / "perpo"
    version = open_version(place).path
    (version / "manifest.json").unlink()
    (place / "current").unlink()
    assert list(found(file)["adapter/perpo"].why) == ["no checkpoint yet"]
    for step in (9, 20):
        (version / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
    one = found(file)["adapter/perpo"]
    assert one.state == "interrupted" and list(one.why) == ["a checkpoint after step 20"]
    with (version / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert found(file)["adapter/perpo"].state == "under way"


def test_a_broken_manifest_hides_no_other_state(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = open_version(file.parent / "r" / "scores" / "train").path
    (version / "manifest.json").write_text("{")
    one = found(file)
    assert one["scores/train"].state == "broken" and one["samples/train"].state == "current"
    assert list(one["preferences/train"].why) == ["scores/train is broken"]
    out, err = perpo_status(file, capsys, code=2)
    assert "everything is up to date" not in out
    assert "scores/train" in out and "broken" in out and "metrics/perpo@test" in out
    assert "the manifest cannot be read" in err and str(version) in err and "fix:" in err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda place: (place / "current").write_text("0123456789abcdef\n"),
            "a version that is not there",
        ),
        (lambda place: (place / "current").write_text("../x\n"), "does not name a version"),
        (lambda place: _no_manifest(place), "the version that `current` names has no manifest"),
        (lambda place: _no_part(place), "1 of 1 parts are missing, for example part-00000.parquet"),
        (lambda place: _newer_schema(place), "a newer perpo made it"),
        (lambda place: _another(place), "in the place of scores/train"),
    ],
    ids=["gone", "no name", "half", "copied in part", "newer", "foreign"],
)
def test_what_cannot_be_used_is_broken_and_says_what_to_do(
    file: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], Any], message: str
) -> None:
    damage(file.parent / "r" / "scores" / "train")
    assert found(file)["scores/train"].state == "broken"
    _, err = perpo_status(file, capsys, "--json", code=2)
    assert message in err and "where:" in err and "fix:" in err


def _no_manifest(place: Path) -> None:
    (open_version(place).path / "manifest.json").unlink()


def _no_part(place: Path) -> None:
    """As after a copy that was stopped: the manifest's name comes first."""
    manifest = open_version(place).path / "manifest.json"
    record = {"file": "part-00000.parquet", "table": "scores", "rows": 1, "sha256": "0"}
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "parts": [record]}))


def _newer_schema(place: Path) -> None:
    manifest = open_version(place).path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 1', '"schema_version": 99'))


def _another(place: Path) -> None:
    shutil.rmtree(place)
    shutil.copytree(place.parents[1] / "samples" / "train", place)


def test_a_folder_that_is_no_runs_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_file(tmp_path)
    (tmp_path / "r" / "photos").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="not the folder of a run: it holds photos"):
        found(file)
    _, err = perpo_status(file, capsys, code=2)
    assert f"where: {tmp_path / 'r'}" in err
    shutil.rmtree(tmp_path / "r")
    (tmp_path / "r").write_text("")
    with pytest.raises(ArtifactError, match="it is a file"):
        found(file)


def test_prompts_that_nothing_needs_are_no_reason_to_run_anything(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spare = "prepare.validation={source: testbed, num_prompts: 3}"
    out, _ = perpo_status(file, capsys, "--set", spare)
    assert "nothing else of this run needs it" in out
    assert out.endswith("everything is up to date\n")
