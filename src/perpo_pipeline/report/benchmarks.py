"""General benchmarks of other harnesses: did anything else get worse?

A trained model is *not worse* on a benchmark if the 95 % interval of the paired difference ends
above the margin, a share of the base's value; *better* or *worse* if the interval excludes zero
(and, for worse, reaches the margin). Everything else is *not shown*.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from perpo_pipeline.config.evaluations import AT, BASE
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.evaluate.harness.compare_harness import compare_harness
from perpo_pipeline.report.results import Estimate
from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import Version, input_of

BETTER, NOT_WORSE, NOT_SHOWN, WORSE = "better", "not worse", "not shown", "worse"
NO_PAIRS = "no scores of single questions"
OTHER_QUESTIONS = "other questions"
NO_DIRECTION = "no direction known"

Row = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """One number of a harness, of the base and of one trained variant.

    `difference` is trained minus base on the same questions; None if they cannot be paired, and
    `verdict` then says why. `margin` is what may be lost, in the metric's unit.
    """

    harness: str
    metric: str
    version: str | None
    variant: str
    base: Estimate
    after: Estimate
    difference: Estimate | None
    margin: float
    higher_is_better: bool | None
    verdict: str


def read_benchmarks(run: Run, found: Mapping[str, Version]) -> list[Benchmark]:
    """Every number that the base and a trained variant both have, in the order of the names."""
    rows: list[Benchmark] = []
    for name, metrics in found.items():
        variant, _, measured = name.partition(AT)
        base = found.get(f"{BASE}{AT}{measured}")
        if variant == BASE:
            continue
        if base is None:
            run.say(f"report: the base was not measured on {measured}, so {name} is left out")
            continue
        if differing := _differing_settings(base, metrics):
            run.say(
                f"report: base and {variant} were measured on {measured} with different "
                f"{' and '.join(differing)}, so {name} is left out"
            )
            continue
        rows += _pair(run, variant, base, metrics)
    return rows


def _differing_settings(base: Version, metrics: Version) -> list[str]:
    """How the base was asked otherwise; the files of logs always differ."""
    first, second = (input_of(v, "harness").manifest["settings"] for v in (base, metrics))
    names = {*first, *second} - {"files_sha256"}
    return sorted(name for name in names if first.get(name) != second.get(name))


def _pair(run: Run, variant: str, base: Version, metrics: Version) -> list[Benchmark]:
    before, after = (_estimates(version) for version in (base, metrics))
    scores = input_of(metrics, "harness")
    resamples = run.config.report.num_resamples
    differences, reason = _differences(scores, input_of(base, "harness"), resamples)
    notes = scores.manifest["notes"]
    rows = []
    for name in [name for name in before if name in after]:
        task, _, metric = name.partition("/")
        known = notes["tasks"].get(task, {})
        direction = known.get("higher_is_better", {}).get(metric)
        margin = run.config.report.benchmark_margin * abs(before[name].value)
        difference = differences.get(name)
        rows.append(
            Benchmark(
                harness=str(notes["harness"]),
                metric=name,
                version=known.get("version"),
                variant=variant,
                base=before[name],
                after=after[name],
                difference=difference,
                margin=margin,
                higher_is_better=direction,
                verdict=verdict(difference, margin, direction) if difference else reason,
            )
        )
    return rows


def verdict(difference: Estimate, margin: float, higher_is_better: bool | None) -> str:
    """What the interval of a difference shows, in the direction in which the metric is better."""
    if higher_is_better is None:
        return NO_DIRECTION
    low, high = difference.low, difference.high
    if not higher_is_better:
        low, high = -high, -low
    if low > 0:
        return BETTER
    if low >= -margin:
        return NOT_WORSE
    return WORSE if high < 0 else NOT_SHOWN


def _differences(
    after: Version, base: Version, num_resamples: int
) -> tuple[dict[str, Estimate], str]:
    """The paired differences by metric, and why the other metrics have none."""
    if not after.manifest["rows"] or not base.manifest["rows"]:
        return {}, NO_PAIRS
    try:
        rows, _ = compare_harness(after, base, num_resamples=num_resamples)
    except ArtifactError:
        return {}, OTHER_QUESTIONS
    highest = _highest_scores(after, base)
    return {row["metric"]: _difference(row, highest[row["metric"]]) for row in rows}, NO_PAIRS


def _difference(row: Row, highest: float) -> Estimate:
    """The paired difference; if no score differs, the interval is what n questions allow.

    The bootstrap's is then a single point, however few the questions. Without a change among n,
    the share of changes is below 1 - 0.025 ** (1 / n) (Clopper and Pearson 1934), and one change
    costs `highest` at most.
    """
    low, high, n = row["low"], row["high"], row["n"]
    if low == high == 0:
        high = highest * (1 - 0.025 ** (1 / n))
        low = -high
    return Estimate(row["difference"], low, high, n)


def _highest_scores(*versions: Version) -> dict[str, float]:
    """The highest score of a question by metric: 1 or 100 where answers are right or wrong."""
    table = pl.concat([pl.DataFrame(version.table()) for version in versions])
    highest = table.group_by("task", "metric").agg(pl.col("score").abs().max())
    return {f"{task}/{metric}": score for task, metric, score in highest.iter_rows()}


def _estimates(version: Version) -> dict[str, Estimate]:
    return {
        row["name"]: Estimate(row["value"], row["low"], row["high"], row["n"])
        for row in version.table().to_pylist()
    }
