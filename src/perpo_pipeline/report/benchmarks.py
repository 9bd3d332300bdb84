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
from perpo_pipeline.evaluate.harness.compare_harness import (
    compare_pairs,
    metrics_of,
    pair_questions,
)
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
    manifests = [input_of(version, "harness").manifest for version in (base, metrics)]
    first, second = (manifest["settings"] for manifest in manifests)
    names = {*first, *second} - {"files_sha256"}
    differing = {name for name in names if first.get(name) != second.get(name)}
    first, second = (_versions(manifest["notes"]) for manifest in manifests)
    differing |= {name for name in {*first} & {*second} if first[name] != second[name]}
    return sorted(differing)


def _versions(notes: Mapping[str, Any]) -> Row:
    """The versions of the harness and of its tasks, where its logs name them."""
    tasks = {f"version of {task}": one["version"] for task, one in notes.get("tasks", {}).items()}
    found = {"harness_version": notes.get("harness_version"), **tasks}
    return {name: version for name, version in found.items() if version is not None}


def _pair(run: Run, variant: str, base: Version, metrics: Version) -> list[Benchmark]:
    before, after = (_estimates(version) for version in (base, metrics))
    scores = input_of(metrics, "harness")
    resamples = run.config.report.num_resamples
    differences, reasons = _differences(scores, input_of(base, "harness"), resamples)
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
                verdict=verdict(difference, margin, direction)
                if difference
                else reasons.get(name, NO_PAIRS),
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
) -> tuple[dict[str, Estimate], dict[str, str]]:
    """The paired differences by metric, and why others have none."""
    ours, theirs = (pl.DataFrame(version.table()) for version in (after, base))
    found, reasons = {}, {}
    for task, metric in sorted(metrics_of(ours) & metrics_of(theirs)):
        name = f"{task}/{metric}"
        try:
            pairs = pair_questions(ours, theirs, task, metric, (after, base))
        except ArtifactError:
            reasons[name] = OTHER_QUESTIONS
        else:
            found[name] = _difference(pairs, num_resamples)
    return found, reasons


def _difference(pairs: pl.DataFrame, num_resamples: int) -> Estimate:
    """The paired difference; losses and gains that n questions did not show are still possible.

    The bootstrap draws the observed changes only: without a loss it allows none, however few the
    questions. Without one among n (images, where the log names them), the share of losses is below
    1 - 0.025 ** (1 / n) (Clopper and Pearson 1934), and one loss costs the highest score at most (1
    if all scores are 0). The bound is lower by as much; in the same way the upper one for gains.
    """
    row = compare_pairs(pairs, num_resamples)
    low, high = row["low"], row["high"]
    n = row["n"] if pairs["image"].null_count() else pairs["image"].n_unique()
    highest = pairs.select(pl.max_horizontal(pl.col("score", "score_b").abs().max())).item() or 1.0
    unseen = highest * (1 - 0.025 ** (1 / n))
    changes = pairs["score"] - pairs["score_b"]
    low -= unseen * (not (changes < 0).any())
    high += unseen * (not (changes > 0).any())
    return Estimate(row["difference"], low, high, row["n"])


def _estimates(version: Version) -> dict[str, Estimate]:
    return {
        row["name"]: Estimate(row["value"], row["low"], row["high"], row["n"])
        for row in version.table().to_pylist()
    }
