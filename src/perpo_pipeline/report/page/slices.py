"""The main metric on the slices of each test set: one folded table per column of `eval.by`."""

from collections.abc import Collection
from typing import Any

from perpo_pipeline.evaluate.slices import NO_VALUE
from perpo_pipeline.report.page.contents import Contents, SplitResults
from perpo_pipeline.report.page.headline import headline_metric
from perpo_pipeline.report.page.results import cell
from perpo_pipeline.report.page.wording import format_of

Json = dict[str, Any]


def slice_tables(contents: Contents) -> list[Json]:
    """The data of the section: a table for each column of each test set; none without slices."""
    return [
        _table(one, column)
        for one in contents.test_sets
        for column in dict.fromkeys(name for row in one.results for name, _ in row.slices)
    ]


def _table(one: SplitResults, column: str) -> Json:
    """One row per value, one column per method."""
    metric = headline_metric(one.results)
    how = format_of(metric)
    values = dict.fromkeys(v for row in one.results for name, v in row.slices if name == column)
    return {
        "split": one.split,
        "column": column,
        "metric": how.label,
        "unit": how.unit.symbol,
        "lower": not how.higher_is_better,
        "methods": [row.method for row in one.results],
        "rows": [
            _row(one, metric, column, value) | {"value": _shown(value, values)} for value in values
        ],
    }


def _shown(value: str | None, values: Collection[str | None]) -> str:
    """The value; for none a text that no other value has."""
    missing = NO_VALUE
    while missing in values:
        missing = f"({missing})"
    return missing if value is None else value


def _row(one: SplitResults, metric: str, column: str, value: str | None) -> Json:
    own = [row.slices.get((column, value), {}) for row in one.results]
    counts = [metrics[metric].n for metrics in own if metric in metrics]
    return {
        "cells": [cell(metric, metrics) for metrics in own],
        "n": max(counts, default=0),
    }
