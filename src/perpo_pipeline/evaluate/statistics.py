"""Confidence intervals of means and of paired differences, over prompts that may share an image.

Prompts about one image are not independent: `clusters` names the image of each value, and whole
clusters are drawn. Intervals are percentiles of the resampled means, taken further out on few
clusters (Hesterberg 2015, arXiv:1411.5279, "expanded percentile": plain percentiles are too narrow
there). For answers that are right or wrong and share no image it is Wilson's interval, which stays
honest at 0 and 1 as well.
"""

import math
from collections.abc import Hashable, Iterable
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from perpo_pipeline.errors import ConfigError, InputError

Interval = tuple[float, float, float]
_Floats = npt.NDArray[np.float64]

# How many index draws are held in memory at a time.
_CHUNK_DRAWS = 2_000_000
# Up to this many kinds of clusters, how often each is drawn comes from one multinomial draw.
_MAX_MULTINOMIAL_KINDS = 64


def mean_interval(
    values: npt.ArrayLike,
    clusters: Iterable[Hashable] | None = None,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """(mean, low, high) of the values `(n,)`; `clusters` as long, None: all are independent.

    Wilson's interval if every value is 0 or 1 and no two share a cluster, or if they are all 0 or
    all 1 (n is then the number of clusters); else the bootstrap over clusters, which depends on
    the seed but not on the order of the values. Low and high are NaN for a single cluster, which
    tells nothing about the spread. Raises InputError for no values, one that is not finite, or
    unequal lengths, ConfigError for a confidence outside (0, 1).
    """
    values = _as_values(values, "values")
    totals = _cluster_totals(values, clusters)
    mean = _ratio(totals)
    is_binary = np.isin(values, (0.0, 1.0)).all()
    if is_binary and (len(totals) == len(values) or mean in (0.0, 1.0)):
        return wilson_interval(round(mean * len(totals)), len(totals), confidence)
    return mean, *_bootstrap(totals, confidence, num_resamples, seed)


def paired_difference_interval(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    clusters: Iterable[Hashable] | None = None,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """(mean(a) - mean(b), low, high), where a[i] and b[i] are two systems' values on one prompt.

    `a`, `b` and `clusters` are `(n,)`; the bootstrap draws prompts (or clusters of them) and so
    keeps what the systems have in common out of the interval. Where a and b are equal everywhere
    the interval is (0, 0, 0). Errors and a single cluster as in `mean_interval`.
    """
    a, b = _as_values(a, "a"), _as_values(b, "b")
    if len(a) != len(b):
        raise InputError(f"a has {len(a)} values, b has {len(b)}: they are not paired")
    totals = _cluster_totals(a - b, clusters)
    return _ratio(totals), *_bootstrap(totals, confidence, num_resamples, seed)


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """(share, low, high) of n independent trials, by Wilson's score interval.

    Raises InputError unless 0 <= successes <= n and n >= 1. Source: Wilson 1927,
    doi:10.1080/01621459.1927.10502953.
    """
    if not (0 <= successes <= n and n >= 1):
        raise InputError(f"{successes} successes in {n} trials: there is no such share")
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
        raise InputError(f"{name} must be a list of one number or more, not of shape {array.shape}")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InputError(f"{name} holds {array[row]}, which has no mean", where=f"index {row}")
    return array


def _cluster_totals(values: _Floats, clusters: Iterable[Hashable] | None) -> _Floats:
    """Sum and number of values in each cluster, (c, 2), in an order the input's does not change."""
    if clusters is None:
        totals = np.stack([values, np.ones_like(values)], axis=1)
    else:
        codes: dict[Hashable, int] = {}
        index = np.array([codes.setdefault(name, len(codes)) for name in clusters], dtype=np.intp)
        if len(index) != len(values):
            raise InputError(f"there are {len(values)} values for {len(index)} cluster names")
        totals = np.stack([np.bincount(index, values), np.bincount(index)], axis=1)
    ordered: _Floats = totals[np.lexsort(totals.T)]
    return ordered


def _ratio(totals: _Floats) -> float:
    return float(totals[:, 0].sum() / totals[:, 1].sum())


def _bootstrap(
    totals: _Floats, confidence: float, num_resamples: int, seed: int
) -> tuple[float, float]:
    """Low and high: expanded percentiles of the mean over resampled clusters."""
    _check_confidence(confidence)
    if num_resamples < 1:
        raise ConfigError(f"num_resamples is {num_resamples}; it must be 1 or more")
    n = len(totals)
    if n == 1:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    kinds, multiplicity = np.unique(totals, axis=0, return_counts=True)
    if len(kinds) <= _MAX_MULTINOMIAL_KINDS:
        drawn = rng.multinomial(n, multiplicity / n, size=num_resamples) @ kinds
    else:
        drawn = _draw_clusters(totals, num_resamples, rng)
    # Percentiles of n clusters miss a factor sqrt(n / (n - 1)) and Student's tails.
    t = float(stdtrit(n - 1, (1 + confidence) / 2))
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * t)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [tail, 1 - tail])
    return float(low), float(high)


def _draw_clusters(totals: _Floats, num_resamples: int, rng: np.random.Generator) -> _Floats:
    """Totals of `num_resamples` draws of as many clusters as there are, (num_resamples, 2)."""
    n = len(totals)
    sums, sizes = np.ascontiguousarray(totals.T)
    is_even = bool((sizes == sizes[0]).all())
    dtype = np.uint16 if n <= 2**16 else np.int64
    drawn = np.full((num_resamples, 2), n * sizes[0])
    step = max(1, _CHUNK_DRAWS // n)
    for start in range(0, num_resamples, step):
        rows = slice(start, min(start + step, num_resamples))
        chosen = rng.integers(0, n, size=(rows.stop - start, n), dtype=dtype)
        drawn[rows, 0] = sums[chosen].sum(axis=1)
        if not is_even:
            drawn[rows, 1] = sizes[chosen].sum(axis=1)
    return drawn


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}; it must lie between 0 and 1")
