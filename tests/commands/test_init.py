"""`perpo init`: the folder of a run, and that nothing is overwritten."""

import errno
import re
from pathlib import Path
from typing import Any

import pytest

from perpo_pipeline import cli
from perpo_pipeline.config.file import load_config
from perpo_pipeline.shipped.files import CONFIGS, config_names
from perpo_pipeline.shipped.run_folder import about

FILES = {"perpo.yaml", "Makefile", "README.md", ".gitignore"}


def init(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["init", *map(str, words)])
    return int(ended.value.code or 0)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("recipe", config_names())
def test_a_recipe_is_the_configuration_that_ships_with_the_name_of_the_folder(
    here: Path, recipe: str
) -> None:
    assert init("cats", "--recipe", recipe) == 0
    assert {file.name for file in (here / "cats").iterdir()} == FILES
    text = (here / "cats/perpo.yaml").read_text()
    loaded = load_config(here / "cats/perpo.yaml")
    assert loaded == load_config(CONFIGS / f"{recipe}.yaml").model_copy(update={"run": "cats"})
    for section in re.findall(r"^(\w+):", text, flags=re.MULTILINE):
        if section not in ("run", "seed"):
            assert re.search(rf"^# .*\n{section}:", text, re.MULTILINE), section
    readme = (here / "cats/README.md").read_text()
    assert recipe in readme and about(recipe) in readme
    is_local = loaded.model.id == "testbed"
    assert ("which are not here yet" in readme) == (not is_local)
    has_rounds = "rounds" in loaded.model_fields_set
    assert ("perpo iterate" in readme, "perpo run " in readme) == (has_rounds, not has_rounds)
    assert ("data/cats/rounds/default" if has_rounds else "data/cats/adapter/") in readme
    roots = [one.image_root for one in loaded.prepare.values() if hasattr(one, "image_root")]
    assert (all(f"the images in `{root}/`" in readme for root in roots) and roots) or is_local


def test_nothing_is_overwritten_and_nothing_half_written(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine").mkdir()
    (here / "mine/README.md").write_text("my notes")
    assert init("mine") == 2
    said = capsys.readouterr().err
    assert "README.md: already there, and nothing was written" in said and "where: mine" in said
    assert [file.name for file in (here / "mine").iterdir()] == ["README.md"]
    (here / "mine/README.md").rename(here / "mine/notes.md")
    assert init("mine") == 0 and init("mine") == 2
    said = capsys.readouterr().err
    assert "perpo.yaml, Makefile, README.md, .gitignore: already there" in said
    (here / "links").mkdir()
    (here / "links/README.md").symlink_to("nowhere")
    assert init("links") == 2 and "README.md: already there" in capsys.readouterr().err
    assert [file.name for file in (here / "links").iterdir()] == ["README.md"]


def test_files_that_a_full_disk_stops_are_removed(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Path.open

    def full(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.name == "README.md" and arguments == ("x",):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", full)
    assert init("mine") == 2 and not list((here / "mine").iterdir())
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["2026-11-29", "1.5", "2024", "on", "null"])
def test_a_name_that_yaml_reads_as_a_number_or_a_date_is_quoted(here: Path, name: str) -> None:
    assert init(name) == 0 and load_config(here / name / "perpo.yaml").run == name


def test_wrong_names_and_places_are_one_error(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert init("cats", "--recipe", "llava15-groundin") == 2
    said = capsys.readouterr().err
    assert "no such recipe; did you mean 'llava15-grounding'?" in said and "demo-both" in said
    assert init("cats", "--recipe", "configs/ci.yaml") == 2
    assert "no such recipe; did you mean 'ci'?" in capsys.readouterr().err
    assert (
        init("a" * 300) == 2 and "cannot be written: File name too long" in capsys.readouterr().err
    )
    assert init("my cats") == 2
    assert "'my cats' cannot be the name of a run" in (said := capsys.readouterr().err)
    assert "--run NAME" in said and not list(here.iterdir())
    assert init("my cats", "--run", "cats") == 0
    (here / "file").write_text("")
    assert init("file") == 2
    assert "cannot be written: File exists" in capsys.readouterr().err


def test_commands_in_the_folder_read_its_file_without_config(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    init("cats", "--recipe", "ci")
    monkeypatch.chdir(here / "cats")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["status"])
    printed = capsys.readouterr()
    assert "run cats (data/cats)" in printed.out and not printed.err
    assert "perpo prepare --config perpo.yaml" in printed.out
