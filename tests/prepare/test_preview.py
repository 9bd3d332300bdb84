"""The contact sheet shows what was prepared; prepare names the order that explains the boxes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from html_page import Page
from PIL import Image

from perpo_pipeline.cli import main
from perpo_pipeline.prepare.preview import SHOWN, choose

HOSTILE = '<script>alert(1)</script> & "quoted"'


def prepare(tmp_path: Path, rows: list[dict[str, Any]], *options: str, **source: Any) -> int:
    """Run `perpo prepare` on these rows; returns its exit code."""
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {"source": "jsonl", "path": str(tmp_path / "data.jsonl"), **source}
    config = {
        "run": "mine",
        "model": {"id": "testbed"},
        "prepare": {"train": settings},
        "eval": {"splits": ["train"]},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    args = ["prepare", "--config", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "out")]
    try:
        main([*args, "--quiet", *options])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def rows_on(tmp_path: Path, boxes: list[list[float]], **fields: Any) -> list[dict[str, Any]]:
    Image.new("RGB", (640, 480), "white").save(tmp_path / "a.png")
    row = {"image": "a.png", "task": "grounding", "expression": "cup"} | fields
    return [row | {"gt_box": box} for box in boxes]


BOXES = [[300.0, 10.0, 400.0, 210.0], [20.0, 30.0, 220.0, 120.0], [500.0, 300.0, 600.0, 470.0]]
XYWH = [[300.0, 10.0, 100.0, 200.0], [20.0, 30.0, 200.0, 90.0], [500.0, 300.0, 100.0, 170.0]]


def test_the_sheet_shows_questions_truths_and_places(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (300, 200), "gray").save(tmp_path / "page.png")
    text = {"image": "page.png", "task": "ocr", "prompt": HOSTILE, "gt_text": "word " * 400}
    empty = {**text, "gt_text": "", "prompt": "Read."}
    rows = [*rows_on(tmp_path, BOXES), text, empty]
    file = tmp_path / "sheets" / "preview.html"
    assert prepare(tmp_path, rows, "--preview", str(file)) == 0
    printed = capsys.readouterr()
    assert str(file) in printed.err and "warning" not in printed.err
    html = file.read_text()
    page = Page(html)
    assert not page.open, "every element is closed"
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 5 and all(one["src"].startswith("data:image/") for one in images)
    assert "640 x 480 pixels; box from x 300, y 10 to x 400, y 210" in {i["alt"] for i in images}
    assert 'points="300.00,10.00 400.00,10.00 400.00,210.00 300.00,210.00"' in html
    assert "<script" not in html and not re.search(r"https?://", html), "nothing runs or is fetched"
    shown = " ".join(" ".join(page.text).split())
    for piece in (
        "3 of 3 grounding prompts, 2 of 2 ocr prompts",
        "outline should lie closely around what the question names. Each green text should say",
        "3 true boxes: the median one has 16% of its image's width and 35% of its height",
        "2 true texts, from 0 to 2,000 characters; empty ones: 1.",
        "2 different images, from 300 x 200 to 640 x 480 pixels.",
        "sentence describes: cup",
        "[300, 10, 400, 210]",
        "all 2,000 characters",
        "(an empty text)",
        "data.jsonl:4 · ocr · 300 x 200",
        HOSTILE,
    ):
        assert piece in shown


def test_the_sheet_of_an_artifact_that_is_there_is_the_same(tmp_path: Path) -> None:
    rows = rows_on(tmp_path, BOXES)
    pages = []
    for name in ("one.html", "two.html"):
        assert prepare(tmp_path, rows, "--preview", str(tmp_path / name)) == 0
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


def test_a_preview_that_is_no_page_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in (tmp_path, tmp_path / "preview.png"):
        assert prepare(tmp_path, rows_on(tmp_path, BOXES), "--preview", str(wrong)) == 2
        assert "ends in .html" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_page_of_somebody_else_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.html"
    file.write_text("<p>my notes</p>")
    rows = rows_on(tmp_path, BOXES)
    assert prepare(tmp_path, rows, "--preview", str(file)) == 2
    assert "was not written by perpo prepare, and would be lost" in capsys.readouterr().err
    assert file.read_text() == "<p>my notes</p>" and not (tmp_path / "out").exists()
    file.unlink()
    for _ in range(2):  # its own page is
        assert prepare(tmp_path, rows, "--preview", str(file)) == 0


def test_tasks_take_turns_and_the_order_of_the_rows_does_not_matter() -> None:
    keys = [(f"g{n}", "grounding") for n in range(500)] + [(f"o{n}", "ocr") for n in range(3)]
    chosen = choose(keys, seed=0)
    assert len(chosen) == SHOWN and sum(key.startswith("o") for key in chosen) == 3
    assert choose(keys[::-1], seed=0) == chosen != choose(keys, seed=1)
    assert choose([], seed=0) == []


def test_impossible_boxes_name_the_order_that_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(tmp_path, rows_on(tmp_path, XYWH)) == 2
    error = capsys.readouterr().err
    assert "gt_box is inverted or empty" in error, "the rows are still listed"
    assert (
        "read as xyxy, 2 of 3 true boxes are impossible (2 without width or height, 0 beyond their "
        "image); read as xywh (x, y, width, height), none is" in error
    )
    assert "leave_out_bad_rows=true" in error


def test_rows_that_are_left_out_warn_of_the_order_each_time_and_on_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, file = rows_on(tmp_path, XYWH), tmp_path / "preview.html"
    for _ in range(2):
        options = ("--preview", str(file), "--set", "prepare.train.leave_out_bad_rows=true")
        assert prepare(tmp_path, rows, *options) == 0
        assert "warning: read as xyxy, 2 of 3 true boxes are impossible" in capsys.readouterr().err
    page = file.read_text()
    assert "read as xywh (x, y, width, height), none is" in page
    assert "Rows that were left out: 2 (bad_truth)." in page


def test_swapped_axes_are_named_beside_the_question_about_thousandths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = [[y1, x1, y2, x2] for x1, y1, x2, y2 in (*BOXES, [560.0, 10.0, 630.0, 90.0])]
    swapped += [[0.0, 490.0, 100.0, 600.0]]
    assert prepare(tmp_path, rows_on(tmp_path, swapped)) == 2
    error = capsys.readouterr().err
    assert "thousandths" in error and "or are they in another order?" in error
    assert "read as yxyx (y1, x1, y2, x2), none is" in error
