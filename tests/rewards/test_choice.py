"""Rewards by name, by import path, and added up: the contract of a user's own is checked."""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from perpo_pipeline.config.score import ScoreConfig
from perpo_pipeline.errors import ArtifactError, ConfigError, InputError
from perpo_pipeline.rewards.choice import (
    AUTO,
    REWARDS,
    Answers,
    columns_of,
    load_own,
    measure,
    own_rewards,
    try_own,
)

OWN = """
import functools
import itertools
import math

calls = itertools.count()


def share_of_a(completions, **columns):
    return [text.count("a") / max(len(text), 1) for text in completions]


def looks_at_the_truth(completions, *, gt_text, width, prompt, **columns):
    return [float(t == g and w == 100) for t, g, w in zip(completions, gt_text, width)]


def too_few(completions, **columns):
    return [0.5]


def not_a_number(completions, **columns):
    return [math.nan] * len(completions)


def none(completions, **columns):
    return None


def above_one(completions, **columns):
    return [1.0] * (len(completions) - 1) + [1.5]


def of_the_batch(completions, **columns):
    longest = max(map(len, completions))
    return [len(text) / longest for text in completions]


def complex_numbers(completions, **columns):
    return [1j] * len(completions)


def leaves(completions, **columns):
    raise SystemExit(0)


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError


def unspeakable(completions, **columns):
    raise Unspeakable


class Callable:
    def __call__(self, completions, **columns):
        return [0.5] * len(completions)


an_object = Callable()
a_partial = functools.partial(share_of_a)


def raises(completions, **columns):
    raise RuntimeError("no such answer")


def random(completions, **columns):
    return [next(calls) % 7 / 7 for _ in completions]


constant = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    file = tmp_path / "my_rewards.py"
    file.write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    load_own.cache_clear()
    yield file
    load_own.cache_clear()
    sys.modules.pop("my_rewards", None)


def answers(*rows: dict[str, Any]) -> Answers:
    schema = {
        "prompt_id": pl.String,
        "sample_id": pl.Int32,
        "completion": pl.String,
        "dataset": pl.String,
        "task": pl.String,
        "prompt": pl.String,
        "width": pl.Int32,
        "height": pl.Int32,
        "gt_text": pl.String,
        "gt_box": pl.List(pl.Float64),
        "gt_boxes": pl.List(pl.List(pl.Float64)),
        "gt_polygon": pl.List(pl.Float64),
    }
    whole = {"dataset": "d", "task": "vqa", "prompt": "?", "width": 100, "height": 100}
    table = [
        {name: {**whole, "prompt_id": f"p{i}", "sample_id": 0, **row}.get(name) for name in schema}
        for i, row in enumerate(rows)
    ]
    return Answers(pl.DataFrame(table, schema=schema), "llava", "full")


QUARTER = {"gt_box": [0, 0, 50, 50], "completion": "[0, 0, 0.5, 0.5]", "task": "grounding"}
TEXT = {"gt_text": "abcd", "completion": "abcx", "task": "ocr"}


def test_auto_takes_the_reward_of_the_task_and_of_the_truth_that_is_there() -> None:
    """A box, a text with 1 of 4 letters wrong, two boxes of which one is found, a triangle."""
    given = answers(
        QUARTER,
        TEXT,
        {
            "task": "grounding",
            "gt_boxes": [[0, 0, 10, 10], [50, 50, 90, 90]],
            "completion": "[0, 0, 0.1, 0.1]",
        },
        {
            "task": "grounding",
            "gt_polygon": [0, 0, 100, 0, 0, 100],
            "completion": "[0, 0, 1, 0, 0, 1]",
        },
    )
    found = measure(given, {AUTO: 1.0})
    assert found.rewards.tolist() == pytest.approx([1.0, 0.75, 0.5, 1.0])
    assert found.parse_ok.tolist() == [True] * 4
    assert found.boxes[0].tolist() == [0, 0, 50, 50]
    assert np.isnan(found.boxes[1:]).all()


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("iou", QUARTER, 1.0),
        ("point_in_box", {"gt_box": [0, 0, 50, 50], "completion": "[0.2, 0.2]"}, 1.0),
        (
            "polygon_iou",
            {
                "gt_polygon": [0, 0, 100, 0, 100, 100, 0, 100],
                "completion": "(0,0),(1,0),(1,0.5),(0,0.5)",
            },
            0.5,
        ),
        (
            "set_iou",
            {"gt_boxes": [[0, 0, 50, 50]], "completion": "[0,0,0.5,0.5] [0.9,0.9,1,1]"},
            0.5,
        ),
        ("edit_similarity", TEXT, 0.75),
        ("character_accuracy", TEXT, 0.75),
        ("word_accuracy", {"gt_text": "a b", "completion": "a c"}, 0.5),
        ("token_f1", {"gt_text": "red car", "completion": "a red bus"}, 0.5),
        ("exact_match", {"gt_text": "Red car.", "completion": "the red car"}, 1.0),
        ("count_match", {"gt_text": "3", "completion": "There are 3 cups."}, 1.0),
        ("numeric_closeness", {"gt_text": "4", "completion": "3"}, 0.75),
    ],
)
def test_every_reward_measures_its_own_truth(
    name: str, row: dict[str, Any], expected: float
) -> None:
    found = measure(answers(row), {name: 1.0})
    assert found.rewards.tolist() == pytest.approx([expected])
    assert found.parse_ok.tolist() == [True]


def test_the_table_above_has_every_reward() -> None:
    (marks,) = [m for m in test_every_reward_measures_its_own_truth.pytestmark]  # type: ignore[attr-defined]
    assert {case[0] for case in marks.args[1]} == set(REWARDS)


@pytest.mark.parametrize("name", [*REWARDS, AUTO])
def test_no_rows_give_no_rewards(name: str) -> None:
    found = measure(answers(QUARTER).where(np.array([False])), {name: 1.0})
    assert found.rewards.shape == (0,) and found.boxes.shape == (0, 4)


def test_weighted_rewards_add_up_to_their_mean() -> None:
    """(3 * 0.75 + 1 * 0) / 4: one letter of four is wrong, and so the texts are not equal."""
    found = measure(answers(TEXT), {"edit_similarity": 3.0, "exact_match": 1.0})
    assert found.rewards.tolist() == pytest.approx([0.5625])


def test_a_truth_that_is_no_number_is_an_error_not_a_zero() -> None:
    with pytest.raises(ArtifactError, match=r"'abcd' of prompt p0 is no number"):
        measure(answers(TEXT), {"count_match": 1.0})


def test_a_reward_without_its_truth_names_the_prompt() -> None:
    with pytest.raises(ArtifactError, match=r"'iou' has no truth .* in 1 rows, the first of .*p1"):
        measure(answers(QUARTER, TEXT), {"iou": 1.0})


def test_a_reward_of_ones_own_sees_completions_and_columns(mine: Path) -> None:
    given = answers({"completion": "aab", "gt_text": "aab"}, {"completion": "b", "gt_text": "a"})
    found = measure(given, {"my_rewards:share_of_a": 1.0})
    assert found.rewards.tolist() == pytest.approx([2 / 3, 0.0])
    found = measure(given, {"my_rewards:looks_at_the_truth": 1.0})
    assert found.rewards.tolist() == [1.0, 0.0]
    mixed = measure(given, {"my_rewards:share_of_a": 1.0, "exact_match": 1.0})
    assert mixed.rewards.tolist() == pytest.approx([5 / 6, 0.0])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("too_few", r"returned the shape \(1,\) for 2 completions"),
        ("not_a_number", r"returned nan \(2 values"),
        ("none", r"no list of numbers: TypeError: it holds object"),
        ("above_one", r"returned 1.5 \(1 values"),
        ("raises", r"raised RuntimeError: no such answer"),
        ("complex_numbers", r"no list of numbers: TypeError: it holds complex"),
        ("leaves", r"raised SystemExit: 0"),
        ("unspeakable", r"raised Unspeakable"),
    ],
)
def test_a_broken_contract_is_told_with_the_place(mine: Path, function: str, message: str) -> None:
    given = answers({"completion": "a"}, {"completion": "b"})
    with pytest.raises(InputError, match=message):
        measure(given, {f"my_rewards:{function}": 1.0})


def test_a_reward_that_changes_its_mind_is_found_before_anything_is_scored(mine: Path) -> None:
    given = answers({"completion": "a"}, {"completion": "b"})
    for changing in ("random", "of_the_batch"):
        given = answers({"completion": "a"}, {"completion": "bb"}, {"completion": "c"})
        with pytest.raises(InputError, match="for the same answer"):
            try_own(given, f"my_rewards:{changing}")
    try_own(given, "my_rewards:share_of_a")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_rewards:absent", "has no attribute 'absent'"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("my_rewards:constant", "is no function but of type int"),
    ],
)
def test_what_cannot_be_imported_is_named(mine: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_own(name)


def test_a_changed_function_changes_the_fingerprint(mine: Path) -> None:
    name = "my_rewards:share_of_a"
    before = own_rewards({name: 1.0, "iou": 1.0})
    mine.write_text(OWN + "# changed\n")
    after = own_rewards({name: 1.0})
    assert list(before) == list(after) == [name] and before != after


def test_objects_and_partials_are_known_by_the_file_of_their_code(mine: Path) -> None:
    names = [f"my_rewards:{name}" for name in ("an_object", "a_partial", "share_of_a")]
    hashes = own_rewards(dict.fromkeys(names, 1.0))
    assert len(set(hashes.values())) == 1
    assert measure(answers({"completion": "ab"}), {names[0]: 1.0}).rewards.tolist() == [0.5]


def test_code_without_a_source_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be told from a changed one"):
        own_rewards({"math:sqrt": 1.0})


def test_weights_whose_sum_would_overflow_still_give_their_mean() -> None:
    found = measure(answers(TEXT), {"edit_similarity": 1e308, "exact_match": 1e308})
    assert found.rewards.tolist() == pytest.approx([0.375])


def test_only_the_columns_that_a_reward_looks_at_are_read() -> None:
    assert columns_of({"iou": 1.0}) == ["prompt_id", "task", "width", "height", "gt_box"]
    assert "prompt" in columns_of({"mine:f": 1.0})
    assert set(itertools.chain(columns_of({AUTO: 1.0}))) >= {"gt_text", "gt_boxes", "gt_polygon"}


def test_an_unknown_reward_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match="there is no reward iuo; one of auto, iou"):
        ScoreConfig.model_validate({"reward": "iuo"})
    for weight in (0, -1, float("nan"), float("inf"), "1", True):
        with pytest.raises(ValueError, match="or names with positive weights"):
            ScoreConfig.model_validate({"reward": {"iou": weight}})
    assert ScoreConfig(reward={"iou": 1, "mine:f": 0.5}).weights() == {"iou": 1.0, "mine:f": 0.5}
