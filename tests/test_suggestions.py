"""What a mistyped name or path may have meant."""

from pathlib import Path

import pytest

from perpo_pipeline.suggestions import closest_path, did_you_mean


@pytest.mark.parametrize(
    ("name", "meant"), [("smaple", "sample"), ("SAMPLE", "sample"), ("fitler", "filter")]
)
def test_the_nearest_name_is_suggested(name: str, meant: str) -> None:
    assert did_you_mean(name, ["sample", "filter", "train"]) == f"; did you mean '{meant}'?"


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert did_you_mean("xyz", ["sample", "filter"]) == ""


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("confgs/demo.yaml", "configs/demo.yaml"),
        ("configs/demo.yml", "configs/demo.yaml"),
        ("configs/Demo.yaml", "configs/demo.yaml"),
        ("confgs/dmeo.yaml", "configs/demo.yaml"),
    ],
)
def test_a_path_is_mended_part_by_part(
    typed: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.yaml").touch()
    assert closest_path(tmp_path / typed) == tmp_path / meant
    monkeypatch.chdir(tmp_path)
    assert closest_path(Path(typed)) == Path(meant)


def test_a_path_that_is_like_nothing_there_or_exists_has_no_suggestion(tmp_path: Path) -> None:
    assert closest_path(tmp_path / "nothing" / "like.this") is None
    assert closest_path(tmp_path) is None
