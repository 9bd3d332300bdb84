"""Folders are walked through with what links lead to, each once, and never in a circle."""

from pathlib import Path

from perpo_pipeline.config.folders import files_below
from perpo_pipeline.config.pages import find_page_files
from perpo_pipeline.config.parquet_files import parquet_files


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")


def test_links_are_entered_unless_they_lead_into_what_is_read_anyway(tmp_path: Path) -> None:
    make(tmp_path, "top/a/1.txt", "top/2.txt", "other/3.txt", "other/deep/4.txt", "third/5.txt")
    top = tmp_path / "top"
    (top / "more").symlink_to(tmp_path / "other")
    (top / "a" / "again").symlink_to(tmp_path / "third")
    (top / "same").symlink_to(top / "a")
    (top / "a" / "up").symlink_to(top)
    (top / "a" / "above").symlink_to(tmp_path)
    (tmp_path / "other" / "deep" / "back").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "to_top").symlink_to(top)
    (top / "itself").symlink_to(top / "itself")
    (top / "broken").symlink_to(top / "none")
    (top / "file.txt").symlink_to(tmp_path / "third" / "5.txt")
    found = sorted(str(file.relative_to(top)) for file in files_below(top))
    files = ["2.txt", "a/1.txt", "a/again/5.txt", "file.txt", "more/3.txt", "more/deep/4.txt"]
    assert found == sorted([*files, "broken", "itself"])
    assert files_below(tmp_path / "none") == [] and files_below(top / "2.txt") == []


def test_pages_and_tables_behind_links_are_found(tmp_path: Path) -> None:
    names = ("p.parquet", "1.png", "1.txt")
    make(tmp_path, *(f"{folder}/{name}" for folder in ("top/own", "other/x") for name in names))
    top = tmp_path / "top"
    (top / "link").symlink_to(tmp_path / "other")
    tables = [top / "link" / "x" / "p.parquet", top / "own" / "p.parquet"]
    assert parquet_files(top) == tables
    assert parquet_files(top / "**" / "*.parquet") == tables
    assert parquet_files(top / "**" / "x" / "p*") == tables[:1]
    assert parquet_files(top / "*" / "*.parquet") == tables[1:]
    pages = find_page_files(top)
    assert [page.name for page in pages.documents] == ["link/x/1.png", "own/1.png"]
