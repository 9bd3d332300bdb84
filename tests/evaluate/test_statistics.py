"""Intervals against hand values, published examples, and simulated coverage."""

import math
import time

import numpy as np
import pytest
from scipy import stats

from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.evaluate.statistics import (
    MCNEMAR,
    PAIRED_BOOTSTRAP,
    compare_paired,
    mcnemar_p,
    mean_interval,
    paired_bootstrap_p,
    paired_difference_interval,
    prompts_needed,
    statistic_interval,
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


def test_a_paired_interval_does_not_contain_the_common_variation():
    """b is a less .1 at every second prompt: difference .05, standard deviation .05.

    1.96 * .05 / sqrt(1000) = .0031, though the values themselves spread by .29.
    """
    a = np.random.default_rng(0).random(1000)
    difference, low, high = paired_difference_interval(a, a - 0.1 * (np.arange(1000) % 2))
    assert difference == pytest.approx(0.05)
    assert (low, high) == pytest.approx((0.05 - 0.0031, 0.05 + 0.0031), abs=2e-4)


def test_a_paired_difference_of_equal_systems_is_zero():
    assert paired_difference_interval([0.1, 0.9, 1], [0.1, 0.9, 1]) == (0, 0, 0)


def test_swapping_the_systems_changes_the_sign_of_a_paired_difference():
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


def ratio(sums):
    return sums[:, 0] / sums[:, 1]


def f1(sums):
    return 2 * sums[:, 0] / (sums[:, 1] + sums[:, 2])


@pytest.mark.parametrize("cluster_of", [None, lambda rng: rng.integers(0, 120, 400)])
def test_a_ratio_of_sums_has_the_interval_of_the_mean(cluster_of):
    """With a denominator of 1 per prompt the ratio of sums is the mean."""
    rng = np.random.default_rng(0)
    values = rng.random(400)
    clusters = None if cluster_of is None else cluster_of(rng)
    counts = np.stack([values, np.ones(400)], axis=1)
    assert statistic_interval(counts, ratio, clusters) == mean_interval(values, clusters)


def test_the_interval_of_a_ratio_follows_the_delta_method():
    """Of a / b with independent a and b: variance (s_a^2 + r^2 s_b^2) / (n mean(b)^2)."""
    rng = np.random.default_rng(1)
    counts = np.stack([rng.normal(3, 1, 2000), rng.normal(6, 2, 2000)], axis=1)
    value, low, high = statistic_interval(counts, ratio)
    means, (s_a, s_b) = counts.mean(axis=0), counts.std(axis=0)
    assert value == pytest.approx(means[0] / means[1], rel=1e-12)
    half = 1.96 * math.hypot(s_a, value * s_b) / (math.sqrt(2000) * means[1])
    assert (value - low, high - value) == pytest.approx((half, half), rel=0.06)


def test_f1_is_measured_on_the_pooled_counts():
    """Hits 1 + 2, said 2 + 2, true 1 + 4: F1 = 6 / 9, not the mean of 2/3 and 2/3 or others."""
    value, low, high = statistic_interval([[1, 2, 1], [2, 2, 4]], f1)
    assert value == pytest.approx(6 / 9)
    assert low <= value <= high


def test_a_statistic_without_a_value_has_no_interval():
    assert all(map(math.isnan, statistic_interval([[0, 0], [0, 0]], ratio)))


def test_few_resamples_without_a_value_are_left_out_and_many_leave_no_interval():
    """One of 3 prompts has a denominator: (2/3)^3 = 30 % of the draws miss it; one of 100 of 400
    draws it less than once in e^-4 = 1.8 % of the cases."""
    value, low, high = statistic_interval([[1, 1], [0, 0], [0, 0]], ratio)
    assert value == 1 and math.isnan(low) and math.isnan(high)
    counts = [[1, 2]] * 4 + [[0, 0]] * 396
    assert statistic_interval(counts, ratio) == (0.5, 0.5, 0.5)


def test_a_single_image_says_nothing_about_a_statistic():
    value, low, high = statistic_interval([[1, 2], [1, 4]], ratio, ["a", "a"])
    assert value == pytest.approx(1 / 3) and math.isnan(low) and math.isnan(high)


@pytest.mark.parametrize(
    ("only_a", "only_b", "expected"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (0, 6, 2 / 64), (2, 8, 2 * 56 / 1024), (4, 4, 1.0)],
)
def test_mcnemars_p_is_twice_the_binomial_tail(only_a, only_b, expected):
    """10 prompts differ, at most 2 one way: (1 + 10 + 45) / 1024, twice. Ties of both add nothing.

    Of 4 and 4 twice the tail is above 1.
    """
    a = [1] * only_a + [0] * only_b + [1, 1, 0]
    b = [0] * only_a + [1] * only_b + [1, 1, 0]
    assert mcnemar_p(a, b) == pytest.approx(expected, abs=1e-12)
    assert mcnemar_p(b, a) == mcnemar_p(a, b)
    if only_a + only_b:
        oracle = stats.binomtest(only_a, only_a + only_b).pvalue
        assert mcnemar_p(a, b) == pytest.approx(oracle, abs=1e-12)


def test_the_paired_bootstrap_p_of_many_prompts_is_students():
    """A shift of about 2.5 standard errors, 800 prompts."""
    rng = np.random.default_rng(0)
    a, b = rng.random(800), rng.random(800)
    a += b.mean() - a.mean() + 2.5 * (a - b).std() / math.sqrt(800)
    expected = stats.ttest_rel(a, b).pvalue
    assert paired_bootstrap_p(a, b) == pytest.approx(expected, abs=0.004)
    assert paired_bootstrap_p(b, a) == pytest.approx(expected, abs=0.004)


def test_copies_on_one_image_do_not_lower_the_p_value():
    rng = np.random.default_rng(0)
    a, b = rng.random(200), rng.random(200) + 0.05
    clusters = np.repeat(np.arange(200), 4)
    copied = paired_bootstrap_p(np.repeat(a, 4), np.repeat(b, 4), clusters)
    assert copied == pytest.approx(paired_bootstrap_p(a, b), abs=1e-9)
    assert paired_bootstrap_p(np.repeat(a, 4), np.repeat(b, 4)) < copied / 5


def test_equal_systems_have_the_p_value_one_and_a_single_image_has_none():
    assert paired_bootstrap_p([0.1, 0.9, 0.4], [0.1, 0.9, 0.4]) == 1.0
    assert math.isnan(paired_bootstrap_p([0.1, 0.9], [0.2, 0.3], ["a", "a"]))


def test_a_difference_that_is_always_the_same_needs_more_than_three_prompts():
    """All resamples have the same mean, so the bootstrap alone would give the smallest p-value."""
    assert paired_bootstrap_p([0.2, 0.3, 0.4], [0.1, 0.2, 0.3]) > 0.05
    many = np.linspace(0, 1, 60)
    assert paired_bootstrap_p(many + 0.1, many) < 0.001


@pytest.mark.parametrize(("num_clusters", "cluster_size"), [(15, 1), (40, 3)])
@pytest.mark.parametrize("kind", ["normal", "right or wrong"])
def test_equal_systems_are_called_different_no_more_often_than_the_level_says(
    num_clusters, cluster_size, kind
):
    """400 experiments at the level .05, seeded: the standard error of the share is .011."""
    rng = np.random.default_rng(11)
    clusters = np.repeat(np.arange(num_clusters), cluster_size)
    rejected = 0
    for seed in range(400):
        shared = rng.random(num_clusters)[clusters]
        if kind == "normal":
            image = rng.normal(size=num_clusters)[clusters]
            a, b = image + rng.normal(size=len(clusters)), rng.normal(size=len(clusters))
        else:
            a, b = (rng.random((2, len(clusters))) < shared).astype(float)
        rejected += paired_bootstrap_p(a, b, clusters, 999, seed) <= 0.05
    assert 0.015 <= rejected / 400 <= 0.085


def test_mcnemar_rejects_equal_systems_less_often_than_the_level():
    """An exact test of whole numbers is slightly conservative."""
    rng = np.random.default_rng(3)
    draws = (rng.random((400, 2, 100)) < rng.random((400, 1, 100))).astype(float)
    share = np.mean([mcnemar_p(a, b) <= 0.05 for a, b in draws])
    assert 0.01 <= share <= 0.06


def test_the_interval_and_the_p_value_agree_if_the_interval_ends_at_zero():
    """b is shifted until the lower bound of a - b is 0: p is then the level of the interval."""
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=30), rng.normal(size=30)
    _, low, _ = paired_difference_interval(a, b, num_resamples=40_000)
    assert paired_bootstrap_p(a, b + low, num_resamples=40_000) == pytest.approx(0.05, abs=0.01)


def test_the_kind_of_test_depends_on_the_values():
    right, wrong = [1, 1, 1, 0], [0, 1, 0, 0]
    assert compare_paired(right, wrong) == (mcnemar_p(right, wrong), MCNEMAR)
    assert compare_paired(right, wrong, list("abcd")) == (mcnemar_p(right, wrong), MCNEMAR)
    shared = compare_paired(right, wrong, list("abca"))
    assert shared == (paired_bootstrap_p(right, wrong, list("abca")), PAIRED_BOOTSTRAP)
    assert compare_paired([0.5, 1, 1, 0], wrong)[1] == PAIRED_BOOTSTRAP


def test_few_and_many_kinds_of_clusters_have_the_same_distribution():
    """64 kinds go through one multinomial draw, more through indices: the same distribution."""
    few = np.repeat(np.arange(64) / 63, 8)
    many = few + np.linspace(0, 1e-9, len(few))
    assert mean_interval(few)[1:] == pytest.approx(mean_interval(many)[1:], abs=2e-3)


def test_ten_thousand_values_take_only_seconds():
    rng = np.random.default_rng(0)
    values = rng.random(10_000)
    start = time.perf_counter()
    mean_interval(values)
    assert time.perf_counter() - start < 5  # measured 0.9 s; a loop over resamples takes minutes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "at least one number"),
        (lambda: mean_interval([[1, 2]]), "at least one number"),
        (lambda: mean_interval([1, math.nan]), "holds nan"),
        (lambda: mean_interval([1, 2, math.inf]), "holds inf"),
        (lambda: mean_interval([1, 2], ["a"]), "2 values have 1 cluster names"),
        (lambda: paired_difference_interval([1, 2], [1]), "a has 2 values, b has 1"),
        (lambda: paired_difference_interval([1], [1], ["a", "b"]), "1 values have 2 cluster names"),
        (lambda: statistic_interval([1, 2], ratio), "the shape"),
        (lambda: statistic_interval([[1, 2], [1, math.nan]], ratio), "not finite"),
        (lambda: statistic_interval([[1, 2]], ratio, ["a", "b"]), "1 values have 2 cluster names"),
        (lambda: mcnemar_p([0.5], [1]), "values 0 and 1"),
        (lambda: mcnemar_p([1, 0], [1]), "a has 2 values, b has 1"),
        (lambda: paired_bootstrap_p([math.nan], [1]), "holds nan"),
        (lambda: wilson_interval(3, 2), "3 successes in 2 trials"),
        (lambda: wilson_interval(0, 0), "0 successes in 0 trials"),
    ],
)
def test_values_without_a_mean_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("confidence", [0, 1, 95, math.nan])
@pytest.mark.parametrize("values", [[0, 1], [0.2, 0.3]])
def test_a_confidence_outside_0_to_1_is_refused(values, confidence):
    with pytest.raises(ConfigError, match="confidence is"):
        mean_interval(values, confidence=confidence)


def test_no_resamples_are_refused():
    with pytest.raises(ConfigError, match="num_resamples is 0"):
        mean_interval([0.2, 0.3], num_resamples=0)


def test_prompts_needed_are_those_of_the_formula():
    """10 of 100 prompts gained, 6 lost: the variance is (16 - 100 * 0.04^2) / 99 = 0.16.

    z = 1.95996 + 0.84162, so n = 0.16 * (2.80158 / 0.02)^2 = 3139.6.
    """
    a, b = np.zeros(100), np.zeros(100)
    a[:10], b[10:16] = 1, 1
    assert prompts_needed(a, b, 0.02) == 3140
    assert prompts_needed(b, a, 0.02) == 3140
    assert prompts_needed(a, b, 0.04) == 785


def test_prompts_that_repeat_their_image_add_nothing():
    a, b = np.zeros(100), np.zeros(100)
    a[:10], b[10:16] = 1, 1
    images = [i for i in range(100) for _ in range(3)]
    once, thrice = (
        prompts_needed(a, b, 0.02),
        prompts_needed(np.repeat(a, 3), np.repeat(b, 3), 0.02, images),
    )
    assert thrice == pytest.approx(3 * once, abs=3)


def test_pairs_without_a_spread_say_nothing_about_the_number_of_prompts():
    assert prompts_needed([1, 0, 1], [1, 0, 1], 0.02) is None
    assert prompts_needed([1, 0, 1], [0, 0, 0], 0.02, ["a", "a", "a"]) is None


def test_the_number_of_prompts_finds_the_difference_four_times_in_five():
    """Gains on 9 % and losses on 5 % of prompts: a true difference of 4 points."""
    rng = np.random.default_rng(0)
    spread = rng.choice([1, -1, 0], p=[0.09, 0.05, 0.86], size=200_000)
    n = prompts_needed(spread, np.zeros_like(spread), 0.04)
    drawn = rng.choice([1.0, -1.0, 0.0], p=[0.09, 0.05, 0.86], size=(2000, n))
    z = drawn.mean(1) / (drawn.std(1, ddof=1) / np.sqrt(n))
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.8, abs=0.03)
