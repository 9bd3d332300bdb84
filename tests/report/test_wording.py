import math

import numpy as np
import pytest

from perpo_pipeline.evaluate.compare import paired_row
from perpo_pipeline.report.page.wording import (
    duration,
    format_of,
    other_image_sentence,
    p_value,
    unsettled,
    verdict,
)
from perpo_pipeline.report.paired import Comparison
from perpo_pipeline.report.results import Estimate

BASE = Estimate(0.40, 0.35, 0.45, 100)


def _paired(low, high, metric="ap50", needed=3140, p=None):
    difference = (low + high) / 2
    p = p or (0.04 if low > 0 or high < 0 else 0.2)
    numbers = (difference, low, high, p, "mcnemar", 100)
    return Comparison(metric, "perpo", "base", *numbers, split="test", needed=needed)


def _sentence(after, low, high, metric="ap50", base=BASE, needed=3140, p=None):
    paired = _paired(low, high, metric, needed, p)
    return verdict(metric, "PerPO", base, after, paired).replace("\u00a0", " ")


def test_a_clear_gain_is_stated_with_both_intervals():
    assert _sentence(Estimate(0.6, 0.55, 0.65, 100), 0.1, 0.3) == (
        "PerPO raises AP@50 from 40.0 % [35.0, 45.0] to 60.0 % [55.0, 65.0]; "
        "the 95 % intervals do not overlap."
    )


def test_a_clear_loss_is_called_a_loss():
    sentence = _sentence(Estimate(0.2, 0.15, 0.25, 100), -0.3, -0.1)
    assert "lowers AP@50" in sentence and "the model became worse" in sentence


def test_a_lower_edit_distance_is_a_gain_and_has_no_percent_sign():
    sentence = _sentence(Estimate(0.2, 0.15, 0.25, 100), 0.1, 0.3, metric="edit_distance")
    assert "lowers edit distance from 0.400 [0.350, 0.450] to 0.200" in sentence
    assert "worse" not in sentence


def test_if_intervals_overlap_the_paired_difference_decides():
    after = Estimate(0.44, 0.39, 0.49, 100)
    assert "is a gain whose interval excludes zero" in _sentence(after, 0.01, 0.07)
    assert "includes zero" in _sentence(after, -0.01, 0.09)
    assert "raises" not in _sentence(after, 0.01, 0.07) + _sentence(after, -0.01, 0.09)


def test_a_difference_that_is_not_shown_is_never_called_no_change():
    after = Estimate(0.44, 0.39, 0.49, 100)
    for needed in (None, 90, 3140):
        sentences = _sentence(after, -0.01, 0.09, needed=needed) + _sentence(BASE, 0, 0)
        assert "no change" not in sentences


def test_too_few_prompts_to_say_come_with_the_number_that_would_do():
    after = Estimate(0.44, 0.39, 0.49, 100)
    assert _sentence(after, -0.01, 0.09).endswith(
        "includes zero: too few to say (about 3,200 prompts would show a difference of 2 points, "
        "this run has 100)."
    )
    distance = _sentence(after, -0.09, 0.01, metric="edit_distance", needed=201)
    assert "about 210 prompts would show a difference of 0.02, this" in distance


def test_enough_prompts_without_a_difference_are_said_to_be_enough():
    sentence = _sentence(Estimate(0.41, 0.36, 0.46, 100), -0.01, 0.03, needed=90)
    assert sentence.endswith(
        "no difference is shown, and 100 prompts are enough to show one of 2 points."
    )


def test_without_any_spread_the_page_says_what_was_seen():
    assert "the same result on each of the 100 prompts" in _sentence(BASE, 0, 0, needed=None)
    unknown = _sentence(Estimate(0.44, 0.39, 0.49, 100), -0.01, 0.09, needed=None)
    assert unknown.endswith("too few to say from 100 prompts.")


def test_a_paired_gain_in_edit_distance_is_a_lower_one():
    after = Estimate(0.38, 0.33, 0.43, 100)
    assert "is a gain whose" in _sentence(after, -0.04, -0.01, metric="edit_distance")
    assert "is a loss whose" in _sentence(after, 0.01, 0.04, metric="edit_distance")


def test_a_difference_in_another_metric_is_named_and_none_says_nothing():
    after = Estimate(0.44, 0.39, 0.49, 100)
    paired = _paired(0.01, 0.07, "mean_reward")
    sentence = verdict("all_found", "PerPO", BASE, after, paired)
    assert "the paired difference in mean reward is a gain" in sentence
    assert verdict("ap50", "PerPO", BASE, after, None).endswith("intervals overlap.")


def test_a_gain_that_only_the_interval_or_only_the_p_value_shows_is_borderline():
    """11 answers gained and 3 lost on 200 prompts: McNemar gives 2 * B(3; 14, 1/2) = .057."""
    a, b = np.zeros(200), np.zeros(200)
    a[:11], b[11:14] = 1, 1
    row = paired_row(a, b, range(200), 2_000)
    assert row["low"] > 0 and round(row["p_value"], 3) == 0.057
    after = Estimate(0.44, 0.39, 0.49, 200)
    paired = Comparison("ap50", "perpo", "base", **row, split="test", needed=90)
    sentence = verdict("ap50", "PerPO", BASE, after, paired).replace("\u00a0", " ")
    assert sentence.endswith(
        "the paired difference is borderline: its interval excludes zero, but p = 0.057."
    )
    assert not paired.is_settled and "a gain" not in sentence
    assert unsettled(paired).startswith("borderline")
    reverse = _sentence(after, -0.001, 0.09, p=0.049)
    assert reverse.endswith("borderline: its interval includes zero, but p = 0.049.")
    assert "a gain" in _sentence(after, 0.001, 0.09, p=0.049)


def test_the_same_value_is_left_as_it_is():
    assert "leaves AP@50 at 40.0 % [35.0, 45.0]" in _sentence(BASE, 0, 0)


def test_intervals_that_touch_overlap():
    assert "overlap, but" in _sentence(Estimate(0.5, 0.45, 0.55, 100), 0.05, 0.15)


def test_unknown_intervals_support_no_claim():
    unknown = Estimate(0.9, math.nan, math.nan, 1)
    sentence = _sentence(unknown, math.nan, math.nan)
    assert "too few images" in sentence and "n/a" in sentence


def test_the_sentence_on_other_images_names_both_values():
    sentence = other_image_sentence("ap50", "PerPO", BASE, Estimate(0.05, 0.01, 0.09, 64))
    assert sentence.replace("\u00a0", " ") == (
        "With the image of another prompt, AP@50 of PerPO is 5.0 % [1.0, 9.0] instead of 40.0 "
        "(n = 64)."
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0421, "p = 0.042"),
        (0.001, "p = 0.001"),
        (0.00099, "p < 0.001"),
        (1.0, "p = 1.000"),
        (math.nan, "p = n/a"),
    ],
)
def test_p_values_have_three_decimals(value, text):
    assert p_value(value).replace("\u00a0", " ") == text


def test_an_unknown_metric_keeps_its_name():
    assert format_of("my_metric").label == "my_metric"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.26, "0.3 s"), (42.2, "42 s"), (600, "10 min"), (5399, "90 min"), (7200, "2.0 h")],
)
def test_durations_have_a_fitting_unit(seconds, text):
    assert duration(seconds) == text
