"""Confidence intervals and paired tests over prompts, which may share an image.

Prompts about one image are not independent: `clusters` names the image of each value, and the
bootstrap draws whole clusters. Intervals are percentiles of the resampled means, widened for few
clusters, where plain percentiles are too narrow (Hesterberg 2015, arXiv:1411.5279, "expanded
percentile"). If all answers are right or wrong and share no image, it is Wilson's interval, which
is also correct at 0 and 1.

The difference of two systems on the same prompts has an interval and a p-value: McNemar's exact
test if all answers are right or wrong and share no image, else the bootstrap.
"""

import math
from collections.abc import Callable, Hashable, Iterable
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, stdtr, stdtrit

from perpo_pipeline.errors import ConfigError, InputError

Interval = tuple[float, float, float]
_Floats = npt.NDArray[np.float64]

MCNEMAR, PAIRED_BOOTSTRAP = "mcnemar", "paired bootstrap"

# Index draws held in memory at a time.
_CHUNK_DRAWS = 2_000_000
# Up to this many kinds of clusters, one multinomial draw says how often each is drawn.
_MAX_MULTINOMIAL_KINDS = 64
# Differences of two values below it are rounding: the mean over seeds of equal answers has some.
_ROUNDING = 1e-12
# If a larger share of resamples has no value (0 / 0), there is no interval.
_MAX_UNDEFINED = 0.05


def mean_interval(
    values: npt.ArrayLike,
    clusters: Iterable[Hashable] | None = None,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """(mean, low, high) of values `(n,)`; `clusters` is `(n,)`, or None if all are independent.

    Wilson's interval if every value is 0 or 1 and no two share a cluster, or if all are 0 or all
    are 1 (n is then the number of clusters); else the bootstrap over clusters, which depends on the
    seed but not on the order of the values. Low and high are NaN for a single cluster, which says
    nothing about the spread. Raises InputError for no values, values that are not finite, or
    unequal lengths, ConfigError for a confidence outside (0, 1).
    """
    values = _as_values(values, "values")
    totals = _cluster_totals(_with_ones(values), clusters)
    mean = _mean(totals)
    if _is_binary(values) and (len(totals) == len(values) or mean in (0.0, 1.0)):
        return wilson_interval(round(mean * len(totals)), len(totals), confidence)
    return mean, *_bootstrap(totals, _ratios, confidence, num_resamples, seed)


def paired_difference_interval(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    clusters: Iterable[Hashable] | None = None,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """(mean(a) - mean(b), low, high), where a[i] and b[i] are two systems' values on one prompt.

    `a`, `b` and `clusters` are `(n,)`. The bootstrap draws prompts (or clusters of them), so what
    the systems have in common does not widen the interval. If a and b are equal everywhere, but for
    rounding, the result is (0, 0, 0). Errors and a single cluster: see `mean_interval`.
    """
    totals = _cluster_totals(_with_ones(_differences(a, b)), clusters)
    return _mean(totals), *_bootstrap(totals, _ratios, confidence, num_resamples, seed)


def statistic_interval(
    counts: npt.ArrayLike,
    statistic: Callable[[_Floats], _Floats],
    clusters: Iterable[Hashable] | None = None,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """(value, low, high) of a statistic of summed counts, such as F1 or a corpus error rate.

    `counts` is `(n, k)`, one row per prompt; `statistic` maps sums over prompts `(m, k)` to values
    `(m,)`, NaN where one is undefined. The bootstrap draws prompts (or clusters of them). Low and
    high are NaN for a single cluster, if the value is NaN, and if more than 5 % of the resamples
    have no value; fewer such resamples are left out. If all resamples have the same value, the
    interval is that point. Errors: see `mean_interval`.
    """
    counts = _as_counts(counts)
    totals = _cluster_totals(counts, clusters)
    value = float(_values_of(statistic, _total(totals))[0])
    low, high = _bootstrap(totals, statistic, confidence, num_resamples, seed)
    return (value, math.nan, math.nan) if math.isnan(value) else (value, low, high)


def compare_paired(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    clusters: Iterable[Hashable] | None = None,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, str]:
    """(p-value, name of the test) for the hypothesis mean(a) = mean(b) on the same prompts.

    McNemar's test if every value is 0 or 1 and no two prompts share a cluster, else the paired
    bootstrap. Shapes and errors: see `paired_difference_interval`.
    """
    a, b = _as_pairs(a, b)
    names = None if clusters is None else list(clusters)
    if _is_binary(a) and _is_binary(b) and (names is None or len(set(names)) == len(a)):
        return mcnemar_p(a, b), MCNEMAR
    return paired_bootstrap_p(a, b, names, num_resamples, seed), PAIRED_BOOTSTRAP


def mcnemar_p(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Two-sided p-value of McNemar's exact test: are a and b right equally often?

    Both are `(n,)` of 0 and 1 on the same independent prompts. Under the hypothesis, a is right on
    each prompt where they differ with probability 1/2: the p-value is twice the smaller binomial
    tail, and 1 if they never differ. Raises InputError for other values.
    Source: McNemar 1947, doi:10.1007/BF02295996.
    """
    a, b = _as_pairs(a, b)
    if not (_is_binary(a) and _is_binary(b)):
        raise InputError("McNemar's test needs answers that are right or wrong: values 0 and 1")
    only_a, only_b = int((a > b).sum()), int((a < b).sum())
    return min(1.0, 2.0 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def paired_bootstrap_p(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    clusters: Iterable[Hashable] | None = None,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p-value of mean(a) = mean(b) on the same prompts, by drawing clusters of them.

    The differences are shifted to mean 0 (the hypothesis) and resampled B times. The p-value is
    (1 + count) / (1 + B), where count is how many resampled means are at least as far from 0 as the
    observed mean (Davison and Hinkley 1997, 4.4). Its tail is widened for few clusters like that of
    the intervals, so that the two agree. It is 1 if a and b have the same mean, NaN for a single
    cluster. Shapes and errors: see `paired_difference_interval`.
    """
    totals = _cluster_totals(_with_ones(_differences(a, b)), clusters)
    n, seen = len(totals), abs(_mean(totals))
    if n == 1:
        return math.nan
    centred = totals - np.outer(totals[:, 1], [_mean(totals), 0.0])
    drawn = np.abs(_ratios(_resample(centred, num_resamples, seed)))
    rounding = _ROUNDING * max(1.0, seen)
    share = (1 + int((drawn >= seen - rounding).sum())) / (1 + num_resamples)
    z = NormalDist().inv_cdf(share / 2) if share < 1 else 0.0
    return 2.0 * float(stdtr(n - 1, z * math.sqrt((n - 1) / n)))


def prompts_needed(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    difference: float,
    clusters: Iterable[Hashable] | None = None,
    power: float = 0.8,
    confidence: float = 0.95,
) -> int | None:
    """How many such prompts would show a true `difference` of mean(a) - mean(b).

    With n prompts, a two-sided test at 1 - `confidence` finds it with probability `power` if

        n = ((z_confidence + z_power) / difference)^2 * variance,

    where the variance of a prompt's difference is that of the pairs at hand: n times the squared
    standard error of their mean, so prompts that share an image count for as much as they add. None
    if that is unknown: one cluster, or pairs that are all equally far apart. Source: Miller 2024,
    "Adding error bars to evals", arXiv:2411.00640 (clusters, paired differences, power).
    """
    a, b = _as_pairs(a, b)
    totals = _cluster_totals(_with_ones(a - b), clusters)
    c = len(totals)
    if c == 1:
        return None
    residuals = totals[:, 0] - _mean(totals) * totals[:, 1]
    variance = c / (c - 1) * float((residuals**2).sum()) / len(a)
    if variance < 1e-12:
        return None
    z = NormalDist().inv_cdf((1 + confidence) / 2) + NormalDist().inv_cdf(power)
    return math.ceil(variance * (z / difference) ** 2)


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """(share, low, high) of n independent trials, by Wilson's score interval.

    Raises InputError unless 0 <= successes <= n and n >= 1. Source: Wilson 1927,
    doi:10.1080/01621459.1927.10502953.
    """
    if not (0 <= successes <= n and n >= 1):
        raise InputError(f"{successes} successes in {n} trials are impossible")
    _check_confidence(confidence)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # At 0 and n the interval ends exactly there; rounding must not move it.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return share, low, high


def _as_values(values: npt.ArrayLike, name: str) -> _Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise InputError(
            f"{name} must be a list of at least one number, not of shape {array.shape}"
        )
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InputError(f"{name} holds {array[row]}, which is not finite", where=f"index {row}")
    return array


def _as_pairs(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[_Floats, _Floats]:
    a, b = _as_values(a, "a"), _as_values(b, "b")
    if len(a) != len(b):
        raise InputError(f"a has {len(a)} values, b has {len(b)}: they are not paired")
    return a, b


def _differences(a: npt.ArrayLike, b: npt.ArrayLike) -> _Floats:
    """a - b, `(n,)`, exactly 0 where the two differ by rounding alone."""
    a, b = _as_pairs(a, b)
    rounding = _ROUNDING * np.maximum(1.0, np.maximum(np.abs(a), np.abs(b)))
    return np.where(np.abs(a - b) <= rounding, 0.0, a - b)


def _as_counts(counts: npt.ArrayLike) -> _Floats:
    array = np.asarray(counts, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise InputError(f"counts must have the shape (n, k), not {array.shape}")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise InputError("counts holds a number that is not finite", where=f"row {row}")
    return array


def _is_binary(values: _Floats) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _with_ones(values: _Floats) -> _Floats:
    """Values as counts (value, 1), whose `_ratios` is the mean."""
    return np.stack([values, np.ones_like(values)], axis=1)


def _cluster_totals(counts: _Floats, clusters: Iterable[Hashable] | None) -> _Floats:
    """Sums of the counts of each cluster, (c, k), sorted: the input's order does not matter."""
    totals = counts
    if clusters is not None:
        codes: dict[Hashable, int] = {}
        index = np.array([codes.setdefault(name, len(codes)) for name in clusters], dtype=np.intp)
        if len(index) != len(counts):
            raise InputError(f"{len(counts)} values have {len(index)} cluster names")
        totals = np.stack([np.bincount(index, column) for column in counts.T], axis=1)
    ordered: _Floats = totals[np.lexsort(totals.T)]
    return ordered


def _ratios(sums: _Floats) -> _Floats:
    return np.asarray(sums[:, 0] / sums[:, 1])


def _mean(totals: _Floats) -> float:
    return float(_ratios(_total(totals))[0])


def _total(totals: _Floats) -> _Floats:
    """Sums over all clusters, (1, k); numpy sums each column pairwise."""
    return np.array([[column.sum() for column in totals.T]])


def _values_of(statistic: Callable[[_Floats], _Floats], sums: _Floats) -> _Floats:
    """The statistic, NaN where it is not finite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.asarray(statistic(sums), dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _bootstrap(
    totals: _Floats,
    statistic: Callable[[_Floats], _Floats],
    confidence: float,
    num_resamples: int,
    seed: int,
) -> tuple[float, float]:
    """Low and high: expanded percentiles of the statistic over resampled clusters."""
    _check_confidence(confidence)
    n = len(totals)
    if n == 1:
        _check_resamples(num_resamples)
        return math.nan, math.nan
    drawn = _values_of(statistic, _resample(totals, num_resamples, seed))
    defined = drawn[~np.isnan(drawn)]
    if len(defined) < (1 - _MAX_UNDEFINED) * num_resamples:
        return math.nan, math.nan
    # Plain percentiles lack a factor sqrt(n / (n - 1)) and Student's tails.
    t = float(stdtrit(n - 1, (1 + confidence) / 2))
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * t)
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def _resample(totals: _Floats, num_resamples: int, seed: int) -> _Floats:
    """Sums over `num_resamples` draws of n of the n clusters, (num_resamples, k)."""
    _check_resamples(num_resamples)
    rng = np.random.default_rng(seed)
    kinds, multiplicity = np.unique(totals, axis=0, return_counts=True)
    if len(kinds) > _MAX_MULTINOMIAL_KINDS:
        return _draw_clusters(totals, num_resamples, rng)
    n = len(totals)
    drawn: _Floats = rng.multinomial(n, multiplicity / n, size=num_resamples) @ kinds
    return drawn


def _draw_clusters(totals: _Floats, num_resamples: int, rng: np.random.Generator) -> _Floats:
    """As `_resample`, drawing the clusters one by one."""
    n = len(totals)
    columns = np.ascontiguousarray(totals.T)
    varying = [i for i, column in enumerate(columns) if (column != column[0]).any()]
    dtype = np.uint16 if n <= 2**16 else np.int64
    drawn = np.tile(n * totals[0], (num_resamples, 1))
    step = max(1, _CHUNK_DRAWS // n)
    for start in range(0, num_resamples, step):
        rows = slice(start, min(start + step, num_resamples))
        chosen = rng.integers(0, n, size=(rows.stop - start, n), dtype=dtype)
        for i in varying:
            drawn[rows, i] = columns[i][chosen].sum(axis=1)
    return drawn


def _check_resamples(num_resamples: int) -> None:
    if num_resamples < 1:
        raise ConfigError(f"num_resamples is {num_resamples}; it must be at least 1")


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}; it must lie between 0 and 1")
