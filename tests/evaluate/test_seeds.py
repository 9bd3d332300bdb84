"""Differences over prompts and seeds, by hand and in simulations."""

import math

import numpy as np
import pytest
from scipy import stats

from perpo_pipeline.errors import InputError
from perpo_pipeline.evaluate.seeds import difference_over_seeds, holm


def test_the_two_variances_are_added_as_computed_by_hand() -> None:
    # Prompts' differences of the means over seeds: 0.5, 0, 1, 0.5; mean 0.5, variance 1/6.
    a = np.array([[1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])  # means 0.75 and 1: variance 1/32
    b = np.array([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])  # means 0.5 and 0.25: variance 1/32
    found = difference_over_seeds(a, b, "wxyz")
    assert found.difference == pytest.approx(0.5)
    assert found.se_prompts**2 == pytest.approx((1 / 6) / 4)
    assert found.se_seeds**2 == pytest.approx(1 / 64 + 1 / 64)
    se = math.sqrt(1 / 24 + 1 / 32)
    df = (1 / 24 + 1 / 32) ** 2 / ((1 / 24) ** 2 / 3 + 2 * (1 / 64) ** 2)
    assert found.df == pytest.approx(df)
    assert found.low == pytest.approx(0.5 - stats.t.ppf(0.975, df) * se)
    assert found.high == pytest.approx(0.5 + stats.t.ppf(0.975, df) * se)
    assert found.p_value == pytest.approx(2 * stats.t.sf(0.5 / se, df))


def test_an_untrained_base_has_the_variance_of_prompts_alone_and_agrees_with_welch() -> None:
    a, base = np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]), np.zeros((1, 3))
    found = difference_over_seeds(a, base, range(3), trained=(True, False))
    assert found.se_seeds**2 == pytest.approx(np.var([2 / 3, 1], ddof=1) / 2)
    # Without a variance of prompts it is Welch's test of the seeds' means.
    first, second = np.array([0.7, 0.74, 0.69]), np.array([0.61, 0.66])
    every = [np.repeat(means[:, None], 50, axis=1) for means in (first, second)]
    welch = stats.ttest_ind(first, second, equal_var=False)
    ours = difference_over_seeds(every[0], every[1], range(50))
    assert ours.p_value == pytest.approx(welch.pvalue)
    assert ours.df == pytest.approx(welch.df)


def test_prompts_of_one_image_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 40)), rng.random((2, 40))
    twice = [np.repeat(values, 2, axis=1) for values in (a, b)]
    alone = difference_over_seeds(a, b, range(40))
    shared = difference_over_seeds(*twice, [i // 2 for i in range(80)])
    assert shared.se_prompts == pytest.approx(alone.se_prompts)
    assert difference_over_seeds(*twice, range(80)).se_prompts < 0.75 * alone.se_prompts


def test_one_seed_claims_nothing() -> None:
    found = difference_over_seeds(np.ones((1, 9)), np.zeros((3, 9)), range(9))
    assert found.difference == 1.0 and math.isnan(found.p_value) and math.isnan(found.low)


def test_methods_that_are_equal_in_everything_do_not_differ() -> None:
    same = np.tile(np.arange(4.0), (3, 1))
    found = difference_over_seeds(same, same, range(4))
    assert (found.low, found.high, found.p_value) == (0.0, 0.0, 1.0)


def test_a_difference_without_any_spread_has_no_test() -> None:
    """Three prompts, all right against all wrong: McNemar's p-value is 0.25, not 0."""
    found = difference_over_seeds(np.ones((2, 3)), np.zeros((2, 3)), range(3))
    assert found.difference == 1.0 and math.isnan(found.p_value) and math.isnan(found.low)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 1000.1])
def test_the_spread_of_rounding_is_none(value: float) -> None:
    """Everywhere 0.2 against 0.1, in 3 seeds and on 50 prompts: the last digits of means differ."""
    high, low = np.full((3, 50), value + 0.1), np.full((3, 50), value)
    found = difference_over_seeds(high, low, range(50))
    assert found.difference == pytest.approx(0.1) and found.se_prompts == 0.0
    assert math.isnan(found.p_value) and math.isnan(found.low) and math.isnan(found.df)
    # The same value as the means of other numbers: no difference, and no spread.
    parts = np.array([[value - 0.1], [value], [value + 0.1]]) * np.ones(50)
    same = difference_over_seeds(low[:1], parts.mean(axis=0)[None], range(50), trained=(False,) * 2)
    assert same.p_value == 1.0 and same.difference == pytest.approx(0, abs=1e-9)
    # One answer of fifty that differs by a millionth is a spread.
    high[0, 0] += 1e-6
    assert difference_over_seeds(high, low, range(50)).p_value < 0.05


def test_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="not the seeds of two methods"):
        difference_over_seeds(np.ones((2, 3)), np.ones((2, 4)), range(3))


@pytest.mark.parametrize("seed_sd", [0.0, 0.01, 0.05])
def test_without_a_difference_at_most_one_of_twenty_is_claimed(seed_sd: float) -> None:
    """Right or wrong answers of methods whose seeds differ, on prompts of unequal difficulty.

    A paired test over prompts alone claims every third one where seeds differ by 5 points.
    """
    rng = np.random.default_rng(1)
    claimed = 0
    for _ in range(400):
        easy = rng.beta(2, 1, size=400)
        a, b = (
            (rng.random((3, 400)) < easy + rng.normal(0, seed_sd, (3, 1))).astype(float)
            for _ in range(2)
        )
        claimed += difference_over_seeds(a, b, range(400)).p_value < 0.05
    assert claimed <= 400 * 0.05 + 2.6 * math.sqrt(400 * 0.05 * 0.95)  # 99.5 % of such counts


def test_p_values_are_adjusted_as_in_holms_paper() -> None:
    assert holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx(
        [0.03, 0.06, 0.06, math.nan], nan_ok=True
    )
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
