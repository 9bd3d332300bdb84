"""Intervals against hand values, published examples, and simulated coverage."""

import math
import time

import numpy as np
import pytest
from scipy import stats

from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.evaluate.statistics import (
    mean_interval,
    paired_difference_interval,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_matches_newcombes_table(successes, n, low, high):
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    share, found_low, found_high = wilson_interval(successes, n)
    assert share == successes / n
    assert (found_low, found_high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (3, 7), (500, 2048)])
def test_wilson_equals_scipys(successes, n, confidence):
    oracle = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    found = wilson_interval(successes, n, confidence)
    assert found[1:] == pytest.approx((oracle.low, oracle.high), abs=1e-12)


def test_no_success_leaves_an_upper_bound_above_zero():
    """z^2 / (n + z^2) = 3.8415 / 13.8415."""
    mean, low, high = mean_interval([0] * 10)
    assert (mean, low) == (0.0, 0.0)
    assert high == pytest.approx(0.277533, abs=1e-6)


def test_only_successes_leave_a_lower_bound_below_one():
    mean, low, high = mean_interval([1] * 10)
    assert (mean, high) == (1.0, 1.0)
    assert low == pytest.approx(1 - 0.277533, abs=1e-6)


def test_right_or_wrong_answers_without_shared_images_get_wilsons_interval():
    assert mean_interval([1, 0, 0, 1, 1], ["a", "b", "c", "d", "e"]) == wilson_interval(3, 5)


def test_only_failures_on_shared_images_count_the_images_not_the_prompts():
    """Fifteen prompts on five images are no better than five independent failures."""
    assert mean_interval([0] * 15, list("abcde") * 3) == wilson_interval(0, 5)


@pytest.mark.parametrize("seed", [0, 1])
def test_many_values_give_the_normal_interval(seed):
    """Uniform values: standard error sqrt(1 / 12 / n), 95 % interval mean +- 1.96 of it."""
    values = np.random.default_rng(seed).random(2000)
    mean, low, high = mean_interval(values)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.03 * half)


def test_copies_on_one_image_do_not_narrow_the_interval():
    values = np.random.default_rng(0).random(300)
    alone = mean_interval(values)
    copied = mean_interval(np.repeat(values, 5), np.repeat(np.arange(300), 5))
    assert copied == pytest.approx(alone, abs=1e-12)
    taken_as_independent = mean_interval(np.repeat(values, 5))
    width, narrow = copied[2] - copied[1], taken_as_independent[2] - taken_as_independent[1]
    assert width / narrow == pytest.approx(math.sqrt(5), rel=0.05)


def test_clusters_of_unequal_size_are_weighted_by_their_prompts():
    """One image with nine 1s, one with a single 0: the mean is .9, not .5."""
    mean, low, high = mean_interval([1] * 9 + [0], ["a"] * 9 + ["b"])
    assert mean == 0.9
    assert (low, high) == (0.0, 1.0)


def test_the_order_of_the_values_does_not_matter_but_the_seed_does():
    rng = np.random.default_rng(0)
    values, clusters = rng.random(500), rng.integers(0, 150, 500)
    order = rng.permutation(500)
    found = mean_interval(values, clusters)
    shuffled = mean_interval(values[order], clusters[order])
    assert shuffled == pytest.approx(found, rel=1e-12)
    assert mean_interval(values, clusters) == found
    assert mean_interval(values, clusters, seed=1)[1:] != found[1:]


def test_a_single_image_says_nothing_about_the_spread():
    mean, low, high = mean_interval([0.2, 0.4], ["a", "a"])
    assert mean == pytest.approx(0.3)
    assert math.isnan(low)
    assert math.isnan(high)


def test_few_values_give_students_interval_on_average():
    """Twenty normal values, 200 times: nearly as wide as mean +- t(19) s / sqrt(20), seeded.

    The bootstrap's own tails are a little light (.985); without the factor sqrt(n / (n - 1)) the
    ratio is .962.
    """
    rng = np.random.default_rng(3)
    ratios = []
    for _ in range(200):
        values = rng.normal(size=20)
        _, low, high = mean_interval(values, num_resamples=4000)
        ratios.append((high - low) / (2 * 2.0930 * values.std(ddof=1) / math.sqrt(20)))
    assert np.mean(ratios) == pytest.approx(1, abs=0.025)


@pytest.mark.parametrize(
    ("num_clusters", "cluster_size", "floor"), [(8, 1, 0.92), (8, 4, 0.90), (40, 3, 0.92)]
)
def test_intervals_hold_the_truth_as_often_as_they_say(num_clusters, cluster_size, floor):
    """Normal values of mean 0 with a shared part for each cluster, 400 experiments, seeded.

    The standard error of the coverage is .011 at .95.
    """
    rng = np.random.default_rng(7)
    clusters = np.repeat(np.arange(num_clusters), cluster_size)
    held = 0
    for _ in range(400):
        values = rng.normal(size=num_clusters)[clusters] + rng.normal(size=len(clusters))
        _, low, high = mean_interval(values, clusters, num_resamples=800)
        held += low <= 0 <= high
    assert floor <= held / 400 <= 0.985


def test_a_paired_difference_leaves_out_what_both_have_in_common():
    """b is a less .1 at every second prompt: difference .05, standard deviation .05.

    1.96 * .05 / sqrt(1000) = .0031, though the values themselves spread by .29.
    """
    a = np.random.default_rng(0).random(1000)
    difference, low, high = paired_difference_interval(a, a - 0.1 * (np.arange(1000) % 2))
    assert difference == pytest.approx(0.05)
    assert (low, high) == pytest.approx((0.05 - 0.0031, 0.05 + 0.0031), abs=2e-4)


def test_a_paired_difference_of_equal_systems_is_zero():
    assert paired_difference_interval([0.1, 0.9, 1], [0.1, 0.9, 1]) == (0, 0, 0)


def test_a_paired_difference_changes_its_sign_with_the_order_of_the_systems():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, 400), rng.integers(0, 2, 400)
    value, low, high = paired_difference_interval(a, b)
    swapped = paired_difference_interval(b, a)
    assert swapped == pytest.approx((-value, -high, -low), abs=0.003)


def test_paired_differences_on_shared_images_draw_whole_images():
    a = np.repeat(np.random.default_rng(0).random(100), 4)
    clusters = np.repeat(np.arange(100), 4)
    alone = paired_difference_interval(a, np.zeros(400))
    shared = paired_difference_interval(a, np.zeros(400), clusters)
    ratio = (shared[2] - shared[1]) / (alone[2] - alone[1])
    assert ratio == pytest.approx(2, rel=0.08)


def test_few_and_many_kinds_of_clusters_are_drawn_alike():
    """64 kinds go through one multinomial draw, more through indices: the same distribution."""
    few = np.repeat(np.arange(64) / 63, 8)
    many = few + np.linspace(0, 1e-9, len(few))
    assert mean_interval(few)[1:] == pytest.approx(mean_interval(many)[1:], abs=2e-3)


def test_ten_thousand_values_take_seconds_at_most():
    rng = np.random.default_rng(0)
    values = rng.random(10_000)
    start = time.perf_counter()
    mean_interval(values)
    assert time.perf_counter() - start < 5  # measured 0.9 s; a loop over resamples takes minutes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "one number or more"),
        (lambda: mean_interval([[1, 2]]), "one number or more"),
        (lambda: mean_interval([1, math.nan]), "holds nan"),
        (lambda: mean_interval([1, 2, math.inf]), "holds inf"),
        (lambda: mean_interval([1, 2], ["a"]), "2 values for 1 cluster names"),
        (lambda: paired_difference_interval([1, 2], [1]), "a has 2 values, b has 1"),
        (lambda: paired_difference_interval([1], [1], ["a", "b"]), "1 values for 2 cluster names"),
        (lambda: wilson_interval(3, 2), "3 successes in 2 trials"),
        (lambda: wilson_interval(0, 0), "0 successes in 0 trials"),
    ],
)
def test_values_without_a_mean_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("confidence", [0, 1, 95, math.nan])
@pytest.mark.parametrize("values", [[0, 1], [0.2, 0.3]])
def test_a_confidence_that_is_no_share_is_refused(values, confidence):
    with pytest.raises(ConfigError, match="confidence is"):
        mean_interval(values, confidence=confidence)


def test_no_resamples_are_refused():
    with pytest.raises(ConfigError, match="num_resamples is 0"):
        mean_interval([0.2, 0.3], num_resamples=0)
