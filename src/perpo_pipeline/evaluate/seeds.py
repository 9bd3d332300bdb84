"""The difference of two methods, each trained with several seeds and asked the same prompts.

Two things vary: the prompts that were drawn for the test, and the seeds of the trainings. A paired
test over prompts alone takes the trainings at hand for the method; three seeds are too few to draw
clusters from. So the two variances are added, each as far as the data show it.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

from perpo_pipeline.errors import InputError

Floats = npt.NDArray[np.float64]
ROUNDING = 1e-12
"""Spread below this share of the largest value is that of rounding: 0.1 + 0.1 is not 0.2 exactly.

One of a million prompts that differs gives 1e-6.
"""


@dataclass(frozen=True)
class SeedDifference:
    """mean(a) - mean(b), its interval and two-sided p-value.

    The last two are NaN where a method has one seed, where all prompts share one image, and where
    a difference has no spread but that of rounding, as of three prompts that all changed.

    `se_prompts` and `se_seeds` are the two standard errors, `df` the degrees of freedom.
    """

    difference: float
    low: float
    high: float
    p_value: float
    se_prompts: float
    se_seeds: float
    df: float


def difference_over_seeds(
    a: Floats,
    b: Floats,
    clusters: Iterable[Hashable],
    *,
    trained: tuple[bool, bool] = (True, True),
    confidence: float = 0.95,
) -> SeedDifference:
    """Compare two methods: `a` is `(seeds of a, n)`, `b` is `(seeds of b, n)`, on n prompts.

    With D = the mean over prompts of (mean over a's seeds - mean over b's seeds):

        SE^2 = SE_prompts^2 + var_a / S_a + var_b / S_b

    SE_prompts is that of D over prompts, or over `clusters` `(n,)` of them (images); var_a is the
    variance of a's S_a means, one per seed. A method that is not `trained` has no such variance.
    Prompts and seeds are crossed, so what a prompt and a seed do together counts in both terms: the
    interval is a little too wide, never too narrow (Cameron, Gelbach and Miller 2011,
    doi:10.1198/jbes.2010.07136, subtract it). The t-distribution has Welch's and Satterthwaite's
    degrees of freedom (doi:10.2307/3002019). Raises InputError unless both have the n prompts.
    """
    names = list(clusters)
    if a.ndim != 2 or b.ndim != 2 or not a.shape[1] == b.shape[1] == len(names) > 0:
        raise InputError(f"{a.shape} and {b.shape} are not the seeds of two methods on n prompts")
    per_prompt = a.mean(axis=0) - b.mean(axis=0)
    difference = float(per_prompt.mean())
    least = ROUNDING * max(float(np.abs(values).max()) for values in (a, b))
    squared, groups = _squared_error(per_prompt, names)
    parts = [(squared, groups - 1.0)]
    for values, is_trained in zip((a, b), trained, strict=True):
        if is_trained:
            parts.append(_seed_part(values))
    parts = [(0.0 if part <= least**2 else part, df) for part, df in parts]
    squared = parts[0][0]
    total = sum(part for part, _ in parts)
    se_seeds = math.sqrt(sum(part for part, _ in parts[1:]))
    if math.isnan(total) or (total == 0 and abs(difference) > least):
        nan = math.nan
        return SeedDifference(difference, nan, nan, nan, math.sqrt(squared), nan, nan)
    se = math.sqrt(total)
    weights = sum(part**2 / df for part, df in parts if part > 0)
    df = total**2 / weights if weights else groups - 1.0
    half = float(stdtrit(df, (1 + confidence) / 2)) * se
    p = 2 * float(stdtr(df, -abs(difference) / se)) if se > 0 else 1.0
    low, high = difference - half, difference + half
    return SeedDifference(difference, low, high, p, math.sqrt(squared), se_seeds, df)


def _squared_error(values: Floats, clusters: Sequence[Hashable]) -> tuple[float, int]:
    """The squared standard error of the mean over clusters, and their number."""
    codes: dict[Hashable, int] = {}
    index = np.array([codes.setdefault(name, len(codes)) for name in clusters], dtype=np.intp)
    c = len(codes)
    if c == 1:
        return math.nan, c
    totals = np.bincount(index, values - values.mean())
    return c / (c - 1) * float((totals**2).sum()) / len(values) ** 2, c


def _seed_part(values: Floats) -> tuple[float, float]:
    """The variance of the mean over seeds, and its degrees of freedom; NaN for one seed."""
    seeds = len(values)
    if seeds == 1:
        return math.nan, 0.0
    return float(values.mean(axis=1).var(ddof=1)) / seeds, seeds - 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number: any one below 0.05 is wrong in 5 % of sweeps at most.

    NaN stays NaN and does not count. Source: Holm 1979, jstor.org/stable/4615733.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted = list(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[i] = largest
    return adjusted
