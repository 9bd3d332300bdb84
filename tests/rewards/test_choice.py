"""Built-in rewards by name, chosen by task, and added up."""

import dataclasses
import itertools
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewards.answer_rows import answers

from perpo_pipeline.commands.score import score
from perpo_pipeline.config.fingerprints import counted_settings, reading_settings
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.config.score import ScoreConfig
from perpo_pipeline.errors import ArtifactError, ConfigError
from perpo_pipeline.rewards.builtin import (
    AUTO,
    REWARDS,
    Answers,
    Measured,
    Reward,
    measured_without_boxes,
)
from perpo_pipeline.rewards.choice import (
    RELEASED,
    columns_of,
    measure,
    measures_iou,
    reads_geometry,
)
from perpo_pipeline.rewards.own import load_own, own_rewards

QUARTER = {"gt_box": [0, 0, 50, 50], "completion": "[0, 0, 0.5, 0.5]", "task": "grounding"}
TEXT = {"gt_text": "abcd", "completion": "abcx", "task": "ocr"}


def test_auto_takes_the_reward_of_the_task_and_of_the_truth_that_is_there() -> None:
    """A box, a text with 1 of 4 letters wrong, two boxes of which one is found, a triangle,
    a point half a diagonal away."""
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
        {"task": "grounding", "gt_point": [0, 0], "completion": "(0.5, 0.5)"},
    )
    found = measure(given, {AUTO: 1.0})
    assert found.rewards.tolist() == pytest.approx([1.0, 0.75, 0.5, 1.0, 0.5])
    assert found.parse_ok.tolist() == [True] * 5
    assert found.boxes[0].tolist() == [0, 0, 50, 50]
    assert np.isnan(found.boxes[1:]).all()


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("iou", QUARTER, 1.0),
        ("giou", {"gt_box": [0, 0, 50, 100], "completion": "[0, 0, 1, 1]"}, 0.75),
        ("iou_steps", {"gt_box": [0, 0, 50, 100], "completion": "[0, 0, 1, 1]"}, 0.5),
        ("iou_steps", {"gt_box": [0, 0, 80, 100], "completion": "[0, 0, 1, 1]"}, 1.0),
        ("iou_steps_strict", {"gt_box": [0, 0, 80, 100], "completion": "[0, 0, 1, 1]"}, 0.8),
        ("point_gaussian", {"gt_box": [0, 0, 50, 50], "completion": "[0.25, 0.25]"}, 1.0),
        ("point_closeness", {"gt_point": [60, 80], "completion": "[0.6, 0.8]"}, 1.0),
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
        (
            "detection_f1",
            {"gt_boxes": [[0, 0, 50, 50]], "completion": "[0,0,0.5,0.5] [0,0,0.5,0.5]"},
            2 / 3,
        ),
        ("detection_f1_mean", {"gt_boxes": [[0, 0, 80, 100]], "completion": "[0,0,1,1]"}, 0.7),
        ("box_count", {"gt_boxes": [[0, 0, 5, 5]], "completion": "[0,0,1,1] [0,0,1,1]"}, 0.5),
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


TRUTHS = {
    "gt_box": [10, 10, 60, 60],
    "gt_boxes": [[10, 10, 60, 60], [70, 70, 90, 90]],
    "gt_polygon": [0, 0, 100, 0, 0, 100],
    "gt_point": [30, 40],
    "gt_text": "3",
}
ANSWER_PARTS = st.sampled_from(
    [
        "[0.1, 0.1, 0.6, 0.6]",
        "[9, -9, 1e9, 5]",
        "(0.3, 0.4)",
        "[]",
        "There is no dog.",
        "3",
        "[[",
        " ",
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(ANSWER_PARTS | st.text(max_size=8), max_size=4), min_size=1, max_size=3))
def test_every_reward_of_any_answer_is_in_0_to_1_and_does_not_depend_on_the_others(
    parts: list[list[str]],
) -> None:
    for name, reward in REWARDS.items():
        truth = {reward.truth: TRUTHS[reward.truth]}
        rows = [
            {**truth, "completion": "".join(p).encode("utf-8", "replace").decode()} for p in parts
        ]
        found = measure(answers(*rows), {name: 1.0})
        assert ((found.rewards >= 0) & (found.rewards <= 1)).all()
        assert not found.rewards[~found.parse_ok].any()
        alone = [measure(answers(row), {name: 1.0}).rewards[0] for row in rows]
        assert found.rewards.tolist() == alone


def test_the_table_above_has_every_reward() -> None:
    (marks,) = [m for m in test_every_reward_measures_its_own_truth.pytestmark]  # type: ignore[attr-defined]
    assert {case[0] for case in marks.args[1]} == set(REWARDS)


SETS = [name for name, reward in REWARDS.items() if reward.truth == "gt_boxes"]


@pytest.mark.parametrize("name", [*SETS, AUTO])
def test_without_a_target_only_an_answer_that_says_so_is_right(name: str) -> None:
    """Garbled, empty and cut-off answers are not parsed; neither are they right."""
    said = ["[]", "There is no dog in the image.", "<think>Is it [0, 0, 1, 1]?</think>[]"]
    boxes = ["[0, 0, 1, 1]", "There is no dog. [0, 0, 1, 1]", "[0, 0, 0.1, 0.1] [0, 0, 1, 1]"]
    garbled = ["", "No.", "[0, 0, 1", "a dog", "<think>There is no dog. []"]
    empty = {"task": "grounding", "gt_boxes": []}
    found = measure(
        answers(*({**empty, "completion": text} for text in said + boxes + garbled)), {name: 1.0}
    )
    assert found.rewards.tolist() == [1] * 3 + [0] * 8
    assert found.parse_ok.tolist() == [True] * 6 + [False] * 5


@pytest.mark.parametrize("name", SETS)
def test_a_denial_where_there_is_a_target_is_read_and_wrong(name: str) -> None:
    row = {"gt_boxes": [[0, 0, 50, 50]], "completion": "There is no dog in the image."}
    found = measure(answers(row, {**row, "completion": "dog"}), {name: 1.0})
    assert found.rewards.tolist() == [0, 0]
    assert found.parse_ok.tolist() == [True, False]


def test_texts_are_normalised_before_they_are_compared_if_the_settings_say_so() -> None:
    row = {"gt_text": "caf\u00e9 au lait", "completion": "**cafe\u0301**  au lait", "task": "ocr"}
    given = answers(row)
    for name in ("edit_similarity", "character_accuracy", "word_accuracy", AUTO):
        assert measure(given, {name: 1.0}).rewards[0] < 1
        whole = dataclasses.replace(given, normalise=("nfc", "markdown", "whitespace"))
        assert measure(whole, {name: 1.0}).rewards.tolist() == [1.0]
        assert measure(whole.where(np.array([True])), {name: 1.0}).rewards.tolist() == [1.0]
    part = dataclasses.replace(given, normalise=("nfc", "whitespace"))
    assert measure(part, {"edit_similarity": 1.0}).rewards.tolist() == pytest.approx([12 / 16])


def test_normal_forms_are_a_setting_with_one_order() -> None:
    for value in ("none", []):
        assert ScoreConfig(normalise=value).normalise == []
    assert ScoreConfig(normalise="nfc").normalise == ["nfc"]
    both = ScoreConfig(normalise=["whitespace", "nfc"])
    assert both == ScoreConfig(normalise=["nfc", "whitespace"])
    for wrong in ("upper", ["nfc", "nfc"], ["nfc", 3], 3, ["none"]):
        with pytest.raises(ValueError, match="normalise"):
            ScoreConfig.model_validate({"normalise": wrong})


@pytest.mark.parametrize(("reward", "counts"), [("iou", False), ("auto", True), ("token_f1", True)])
def test_normal_forms_count_where_a_reward_compares_texts(reward: str, counts: bool) -> None:
    config = ScoreConfig(reward=reward, normalise="nfc")
    found = {"reward": config.weights(), "own_rewards": {}, **reading_settings(ModelConfig())}
    assert ("normalise" in counted_settings("scores", config, found)) == counts


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


def test_weights_whose_sum_would_overflow_still_give_their_mean() -> None:
    found = measure(answers(TEXT), {"edit_similarity": 1e308, "exact_match": 1e308})
    assert found.rewards.tolist() == pytest.approx([0.375])


def test_only_the_columns_that_a_reward_reads_are_loaded() -> None:
    assert columns_of({"iou": 1.0}) == ["prompt_id", "task", "width", "height", "gt_box"]
    assert "prompt" in columns_of({"mine:f": 1.0})
    assert set(itertools.chain(columns_of({AUTO: 1.0}))) >= {"gt_text", "gt_boxes", "gt_polygon"}


def test_an_unknown_reward_is_refused_with_the_known_names() -> None:
    with pytest.raises(
        ValueError, match=r"there is no reward iuo; did you mean 'iou'\? one of auto, iou"
    ):
        ScoreConfig.model_validate({"reward": "iuo"})
    for weight in (0, -1, float("nan"), float("inf"), "1", True):
        with pytest.raises(ValueError, match="or names with positive weights"):
            ScoreConfig.model_validate({"reward": {"iou": weight}})
    assert ScoreConfig(reward={"iou": 1, "mine:f": 0.5}).weights() == {"iou": 1.0, "mine:f": 0.5}


def test_a_reward_that_is_added_to_the_table_is_found_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In settings, columns, fingerprints, scoring, and in the names that errors list."""

    def half(given: Answers) -> Measured:
        return measured_without_boxes(np.full(given.rows.height, 0.5), [True] * given.rows.height)

    monkeypatch.setitem(REWARDS, "half_iou", Reward("gt_polygon", half, is_iou=True))
    assert ScoreConfig(reward="half_iou").weights() == {"half_iou": 1.0}
    with pytest.raises(ValueError, match=r"one of auto, iou, .*half_iou"):
        ScoreConfig(reward="halve")
    with pytest.raises(ConfigError, match=r"one of auto, iou, .*half_iou"):
        load_own("halve")
    assert columns_of({"half_iou": 1.0})[-1] == "gt_polygon"
    assert reads_geometry("half_iou") and measures_iou({"half_iou": 1.0})
    assert own_rewards({"half_iou": 1.0}) == {}
    row = {"gt_polygon": [0, 0, 9, 0, 0, 9], "completion": "?"}
    assert measure(answers(row), {"half_iou": 1.0}).rewards.tolist() == [0.5]


def test_the_help_of_perpo_score_names_every_reward() -> None:
    words = set(re.findall(r"\w+", str(score.__doc__)))
    assert {AUTO, *REWARDS} <= words


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({AUTO: 1.0}, True),
        ({"iou": 1.0}, True),
        ({"polygon_iou": 2.0}, True),
        ({RELEASED: 1.0}, True),
        ({"set_iou": 1.0}, False),
        ({"giou": 1.0}, False),
        ({"iou_steps": 1.0}, False),
        ({"mine:f": 1.0}, False),
        ({"iou": 1.0, "token_f1": 1.0}, False),
        (None, False),
    ],
)
def test_only_the_iou_of_one_region_counts_as_iou(weights: Any, expected: bool) -> None:
    assert measures_iou(weights) is expected
