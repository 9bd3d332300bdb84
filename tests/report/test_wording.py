import math

import pytest

from perpo_pipeline.report.page.wording import (
    duration,
    format_of,
    other_image_sentence,
    p_value,
    verdict,
)
from perpo_pipeline.report.paired import Comparison
from perpo_pipeline.report.results import Estimate

BASE = Estimate(0.40, 0.35, 0.45, 100)


def _paired(low, high):
    difference = (low + high) / 2
    return Comparison(
        "ap50", "perpo", "base", difference, low, high, 0.04, "mcnemar", 100, split="test"
    )


def _sentence(after, low, high, metric="ap50", base=BASE):
    return verdict(metric, "PerPO", base, after, _paired(low, high)).replace("\u00a0", " ")


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
    assert "this run shows no change" in _sentence(after, -0.01, 0.09)
    assert "raises" not in _sentence(after, 0.01, 0.07) + _sentence(after, -0.01, 0.09)


def test_the_same_value_is_no_change():
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
