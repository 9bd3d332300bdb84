"""Counts and measures against hand-derived values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpo_pipeline.rewards.number import count_matches, numeric_closeness

numbers = st.lists(st.tuples(st.floats(), st.floats() | st.integers(-3, 3).map(float)))


@pytest.mark.parametrize(
    ("pred", "gt", "expected"),
    [
        (3, 3, 1),
        (3.0, 3, 1),
        (3.0001, 3, 0),
        (0, -0.0, 1),
        (4, 3, 0),
        (-3, 3, 0),
        (math.nan, 3, 0),
        (math.nan, math.nan, 0),
        (math.inf, math.inf, 0),
    ],
)
def test_a_count_is_right_or_wrong(pred: float, gt: float, expected: float):
    assert count_matches([pred], [gt]).tolist() == [expected]


@pytest.mark.parametrize(
    ("pred", "gt", "expected"),
    [
        (8, 10, 0.8),
        (10, 8, 0.8),
        (-8, -10, 0.8),
        (5, 5, 1),
        (0, 0, 1),
        (-0.0, 0.0, 1),
        (0, 5, 0),
        (5, 0, 0),
        (-5, 5, 0),
        (1e300, 2e300, 0.5),
        (5e-324, 1e-323, 0.5),
        (-1.7e308, 1.7e308, 0),
        (math.nan, 5, 0),
        (5, math.nan, 0),
        (math.inf, math.inf, 0),
        (math.inf, 5, 0),
    ],
)
def test_closeness_of_numbers_derived_by_hand(pred: float, gt: float, expected: float):
    assert numeric_closeness([pred], [gt]).tolist() == [expected]


@given(numbers)
def test_closeness_is_the_relative_distance_from_one_in_either_order(pairs):
    pred, gt = np.array(pairs, dtype=float).reshape(-1, 2).T
    found = numeric_closeness(pred, gt)
    assert found.shape == (len(pairs),)
    for value, (p, t) in zip(found, pairs, strict=True):
        if not (math.isfinite(p) and math.isfinite(t)):
            assert value == 0
        elif p or t:
            half = abs(p / 2 - t / 2) / max(abs(p / 2), abs(t / 2)) if p / 2 or t / 2 else 1.0
            expected = max(0.0, 1 - half)
            if max(abs(p), abs(t)) > 1e-300:  # halves of the smallest are rounded
                assert value == pytest.approx(expected, abs=1e-12)
    np.testing.assert_array_equal(found, numeric_closeness(gt, pred))
    np.testing.assert_array_equal(count_matches(pred, gt), count_matches(gt, pred))


@given(numbers)
def test_every_reward_of_numbers_is_between_0_and_1(pairs):
    pred, gt = np.array(pairs, dtype=float).reshape(-1, 2).T
    for measure in (count_matches, numeric_closeness):
        found = measure(pred, gt)
        assert found.dtype == np.float64 and found.shape == (len(pairs),)
        assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("measure", [count_matches, numeric_closeness])
@pytest.mark.parametrize(("pred", "gt"), [([1], [1, 2]), (1, 1), ([[1]], [[1]])])
def test_shapes_that_do_not_match_are_refused(measure, pred, gt):
    with pytest.raises(ValueError, match="must be \\(n,\\)"):
        measure(pred, gt)
