"""`perpo init`: the folder of a run, and that nothing is overwritten."""

import re
from pathlib import Path

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
    assert recipe in readme and about(recipe) in readme and "data/cats/adapter/" in readme
    is_local = loaded.model.id == "testbed"
    assert ("which are not here yet" in readme) == (not is_local)
    assert ("perpo iterate" in readme) == ("rounds" in loaded.model_fields_set)


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


def test_wrong_names_and_places_are_one_error(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert init("cats", "--recipe", "llava15-groundin") == 2
    said = capsys.readouterr().err
    assert "no such recipe; did you mean 'llava15-grounding'?" in said and "demo-both" in said
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
