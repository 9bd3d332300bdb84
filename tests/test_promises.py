"""What a version promises: names that a release had still work, or say what to use instead.

docs/releasing.md has the rule; `python -m tools.interface` records what a version has.
"""

import importlib
import importlib.util
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

import perpo_pipeline
from perpo_pipeline import MOVED, __version__, cli
from perpo_pipeline.commands.removed import REMOVED
from perpo_pipeline.config.renamed import RENAMED
from perpo_pipeline.store.upgrades import STEPS
from tools.interface import RECORDS, interface

ROOT = Path(__file__).parents[1]
HEADING = re.compile(r"^## (\d+\.\d+\.\d+) \((unreleased|\d{4}-\d\d-\d\d)\)$")
RECORDED = sorted(RECORDS.glob("interface-*.json"))


def broken(record: dict[str, Any], today: dict[str, Any]) -> list[str]:
    """The names of an older version that are gone without a word about what replaced them."""
    gone = [
        f"perpo {command} {option}"
        for command, options in record["options"].items()
        for option in options
        if option not in today["options"].get(command, [])
        and option not in REMOVED.get(command, {})
    ]
    gone += [s for s in record["settings"] if s not in today["settings"] and s not in RENAMED]
    gone += [
        f"schema {table} {version}"
        for table, version in record["schemas"].items()
        if not version <= today["schemas"].get(table, 0) <= version + len(STEPS.get(table, ()))
    ]
    for module, names in record["python"].items():
        if module not in MOVED:
            now = today["python"].get(module, [])
            gone += [f"{module}.{name}" for name in names if name not in now]
    return gone


def releases() -> list[tuple[Version, str]]:
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    found = [HEADING.match(line) for line in lines if line.startswith("## ")]
    assert all(found), "a section of CHANGELOG.md is `## 1.2.3 (unreleased)` or `## 1.2.3 (DATE)`"
    return [(Version(one[1]), one[2]) for one in found if one]


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_what_a_version_had_still_works_or_names_what_replaced_it(file: Path) -> None:
    """If a name of an unreleased version goes: `python -m tools.interface` records it anew."""
    assert broken(json.loads(file.read_text()), interface()) == []


def test_a_released_version_has_recorded_all_its_names() -> None:
    version, date = releases()[0]
    if date != "unreleased":  # until then names may still come and go
        record = json.loads((RECORDS / f"interface-{version}.json").read_text())
        assert not broken(interface(), record), "run: python -m tools.interface"


def test_a_name_that_is_gone_without_a_word_is_found() -> None:
    today = interface()
    older = {
        "options": {"filter": ["--min-margin", "--strategy", "--max"], "gone": ["--out"]},
        "settings": ["filter.min_margin", "eval.split", "filter.margin"],
        "schemas": {"prompts": 1, "scores": 99},
        "python": {
            "perpo_pipeline.answers.boxes": ["parse_box", "read"],
            "perpo_pipeline.boxes": ["x"],
        },
    }
    assert broken(older, today) == [
        "perpo filter --max",
        "perpo gone --out",
        "filter.margin",
        "schema scores 99",
        "perpo_pipeline.answers.boxes.read",
    ]
    added = broken(today, older)  # what a record of today would lack
    assert {"eval.splits", "perpo filter --quiet", "perpo status --config"} <= set(added)


def test_the_version_is_in_one_place_and_the_changelog_has_its_section(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["dynamic"] == ["version"]
    assert (
        settings["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "perpo_pipeline.__version__"
    )
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"perpo {perpo_pipeline.__version__}\n"
    versions = [version for version, _ in releases()]
    assert versions == sorted(set(versions), reverse=True) and str(versions[0]) == __version__
    assert all(date != "unreleased" for _, date in releases()[1:])


def test_every_version_of_the_changelog_has_recorded_what_it_promises() -> None:
    recorded = {file.stem.removeprefix("interface-") for file in RECORDED}
    assert recorded == {str(version) for version, _ in releases()}, "run: python -m tools.interface"


def test_every_renamed_setting_and_moved_module_says_since_when_and_where_to() -> None:
    for old, to in RENAMED.items():
        assert Version(to.since) in [version for version, _ in releases()], old
        section = 2 if old.startswith("prepare.SPLIT.") else 1
        assert old.split(".")[:section] == to.new.split(".")[:section], old
    for old, new in MOVED.items():
        assert importlib.util.find_spec(new) is not None
        with pytest.raises(ModuleNotFoundError, match=f"import {re.escape(new)} instead"):
            importlib.import_module(old)
