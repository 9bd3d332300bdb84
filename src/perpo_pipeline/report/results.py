"""The metrics of every method, from the `metrics` artifacts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from perpo_pipeline.config.evaluations import (
    BLANK_IMAGE,
    OTHER_IMAGE,
    Evaluation,
    read_evaluation,
)
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.evaluate.summarise import ALL
from perpo_pipeline.report.inputs import Inputs
from perpo_pipeline.report.methods import ReportedMethod, reported_methods
from perpo_pipeline.store.artifacts import Version

Slice = tuple[str, str | None]
"""A column and its value; None: the prompts without one."""
DATASET = "dataset"
OWN_DATASET = "dataset (column of the data)"
"""The column `dataset` of `eval.by`, beside the datasets that a split has."""


@dataclass(frozen=True)
class Estimate:
    """A mean of `n` values with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class MethodResults:
    """One method's metrics by name.

    `conditions` holds its metrics with another image or a blank one, by the suffix of the
    evaluation; `seeds` those of each variant if there are several; `slices` those on the prompts of
    each value of a column of `eval.by`, and of each dataset if there are several.
    """

    method: ReportedMethod
    metrics: dict[str, Estimate]
    conditions: dict[str, dict[str, Estimate]]
    seeds: dict[str, dict[str, Estimate]]
    slices: dict[Slice, dict[str, Estimate]]


def read_results(config: RunConfig, inputs: Inputs, split: str) -> list[MethodResults]:
    """The results of every method on a split; several seeds give means, of values and of bounds.

    The interval of one seed covers the choice of prompts, which all seeds share. So the mean of the
    bounds is a little wider than the interval of the mean.
    """
    metrics = {
        name: _read_metrics(version)
        for name, version in inputs.metrics.items()
        if read_evaluation(name).split == split
    }
    results = []
    for method in reported_methods(config):
        own = {variant: metrics[Evaluation(variant, split).name] for variant in method.variants}
        conditions = {}
        for image in (OTHER_IMAGE, BLANK_IMAGE):
            names = [Evaluation(variant, split, image).name for variant in own]
            shown = [metrics[name] for name in names if name in metrics]
            conditions[image] = _mean_over_seeds(shown)
        seeds = own if len(own) > 1 else {}
        mean = _mean_over_seeds(list(own.values()))
        names = [Evaluation(variant, split).name for variant in own]
        slices = _slices([inputs.metrics[name] for name in names])
        results.append(MethodResults(method, mean, conditions, seeds, slices))
    return results


def _slices(seeds: Sequence[Version]) -> dict[Slice, dict[str, Estimate]]:
    """The metrics on each slice that every seed has, as means over seeds."""
    found = [_read_slices(version) for version in seeds]
    shared = [one for one in found[0] if all(one in other for other in found)]
    return {one: _mean_over_seeds([metrics[one] for metrics in found]) for one in shared}


def _read_slices(version: Version) -> dict[Slice, dict[str, Estimate]]:
    found: dict[Slice, dict[str, Estimate]] = {}
    for row in version.table().to_pylist():
        column, value = row["slice_column"], row["slice_value"]
        if column is None and row["dataset"] == ALL:
            continue
        if column is None:
            name: Slice = (DATASET, row["dataset"])
        else:
            name = (OWN_DATASET if column == DATASET else column, value)
        estimate = Estimate(row["value"], row["low"], row["high"], row["n"])
        found.setdefault(name, {})[row["name"]] = estimate
    return found


def _read_metrics(version: Version) -> dict[str, Estimate]:
    rows = [row for row in version.table().to_pylist() if row["dataset"] == ALL]
    names = [row["name"] for row in rows]
    if len(set(names)) < len(names):
        raise ArtifactError(
            f"a metric occurs more than once: {names}",
            where=str(version.path),
            fix="evaluate one split at a time",
        )
    return {r["name"]: Estimate(r["value"], r["low"], r["high"], r["n"]) for r in rows}


def _mean_over_seeds(seeds: Sequence[Mapping[str, Estimate]]) -> dict[str, Estimate]:
    def mean(name: str) -> Estimate:
        estimates = [metrics[name] for metrics in seeds]
        value, low, high = np.mean([(e.value, e.low, e.high) for e in estimates], axis=0)
        return Estimate(float(value), float(low), float(high), estimates[0].n)

    return {name: mean(name) for name in shared_metrics(seeds)}


def shared_metrics(rows: Sequence[Mapping[str, Estimate]]) -> list[str]:
    """Names that every row has, in the order of the first row; empty if there are no rows."""
    return [name for name in rows[0] if all(name in row for row in rows)] if rows else []
