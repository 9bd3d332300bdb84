"""docs/examples: the rewards and box formats of one's own run, and the manual shows these files."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rewards.answer_rows import answers

from perpo_pipeline.answers.boxes import format_box, parse_box
from perpo_pipeline.answers.formats import get_box_format
from perpo_pipeline.config.fingerprints import _unused_by_rewards
from perpo_pipeline.rewards.choice import columns_of, measure
from perpo_pipeline.rewards.own import OWN_COLUMNS, asked_for, try_own

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
BOX = {"task": "grounding", "gt_box": [10.0, 10.0, 50.0, 50.0]}


@pytest.fixture(autouse=True)
def examples_on_the_path() -> Iterator[None]:
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


def test_the_parsed_box_is_handed_over_and_an_answer_without_one_is_unparsed() -> None:
    """Of an image of 100 x 100 px: the true box, twice its area around it, none, a second box."""
    given = answers(
        {**BOX, "completion": "[0.1, 0.1, 0.5, 0.5]"},
        {**BOX, "completion": "[0.1, 0.1, 0.5, 0.9]"},
        {**BOX, "completion": "nowhere"},
        {**BOX, "completion": "<think>[0, 0, 1, 1]</think>[0.1, 0.1, 0.3, 0.5] [0, 0, 1, 1]"},
        {**BOX, "completion": "<think>cut off"},
    )
    try_own(given, "own_rewards:tight_iou")
    found = measure(given, {"own_rewards:tight_iou": 1.0})
    assert found.rewards.tolist() == pytest.approx([1.0, 0.25, 0.0, 0.5, 0.0])
    assert found.parse_ok.tolist() == [True, True, False, True, False]
    assert found.boxes[1].tolist() == pytest.approx([10, 10, 50, 90])
    assert np.isnan(found.boxes[2]).all() and found.reach is not None


def test_other_columns_of_the_data_are_handed_over() -> None:
    page = {"task": "ocr", "gt_text": "Chapter 7"}
    given = answers(
        {**page, "completion": "chapter seven"},
        {**page, "completion": "An OTTER swims."},
        {**page, "completion": ""},
    )
    extra = [None, json.dumps({"keywords": ["otter", "river"]}), json.dumps({"keywords": []})]
    rows = given.rows.with_columns(extra=pl.Series(extra, dtype=pl.String))
    given = type(given)(rows, given.reading)
    try_own(given, "own_rewards:keyword_recall")
    found = measure(given, {"own_rewards:keyword_recall": 1.0})
    assert found.rewards.tolist() == [0.5, 0.5, 0.0] and found.parse_ok.all()
    assert "extra" in columns_of({"own_rewards:keyword_recall": 1.0})


def test_the_box_format_counts_where_a_reward_asks_for_boxes() -> None:
    def unused(name: str) -> set[str]:
        return {*_unused_by_rewards({"reward": {f"own_rewards:{name}": 1.0}})}

    assert "box_format" in unused("keyword_recall") and "box_format" not in unused("tight_iou")
    assert asked_for("own_rewards:tight_iou") == {"answer_box"}


@pytest.mark.parametrize(
    ("name", "written", "box"),
    [
        ("YXYX", '{"box_2d": [100, 50, 300, 250]}', (10.0, 10.0, 50.0, 30.0)),
        ("TAG", '<region left="10" top="10" right="50" bottom="30"/>', (10.0, 10.0, 50.0, 30.0)),
    ],
)
def test_a_box_is_written_and_read_in_ones_own_format(
    name: str, written: str, box: tuple[float, float, float, float]
) -> None:
    path, place = f"own_formats:{name}", {"frame": "full", "image_size": (200, 100)}
    assert format_box(box, path, **place) == written
    assert parse_box(f"It is here: {written}.", path, **place) == pytest.approx(box)
    assert parse_box("It is here: [1, 2, 3, 4].", path, **place) is None
    assert "a dog" in get_box_format(path).ask("a dog")


def test_the_example_names_every_column() -> None:
    text = (EXAMPLES / "own_rewards.py").read_text()
    columns = {*OWN_COLUMNS, "whole_completions", "answer_box", "answer_boxes", "extra"}
    introduction = text.split('"""')[1]
    assert all(column in introduction for column in columns)


@pytest.mark.parametrize(
    ("file", "page"), [("own_rewards.py", "rewards.md"), ("own_formats.py", "boxes.md")]
)
def test_the_manual_shows_the_file(file: str, page: str) -> None:
    shown = (ROOT / "docs" / page).read_text()
    code = (EXAMPLES / file).read_text()
    assert f'```python title="docs/examples/{file}"\n{code}```\n' in shown
