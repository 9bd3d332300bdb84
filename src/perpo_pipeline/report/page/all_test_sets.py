"""All test sets side by side: one table per metric, and the paired differences on each."""

from collections.abc import Sequence
from typing import Any

from perpo_pipeline.report.methods import ReportedMethod
from perpo_pipeline.report.page.contents import Contents, SplitResults
from perpo_pipeline.report.page.headline import headline_metric
from perpo_pipeline.report.page.results import best_value, cell
from perpo_pipeline.report.page.wording import format_of, p_value

Json = dict[str, Any]

IN_DOMAIN, OUT_OF_DOMAIN = "In domain", "Out of domain"


def all_test_sets(contents: Contents) -> list[Json]:
    """The data of the section: groups of tables; none if there is only one test set."""
    sets = contents.test_sets
    if len(sets) == 1:
        return []
    methods = [row.method for row in contents.results]
    outside = [one for one in sets if one.is_out_of_domain]
    inside = [one for one in sets if not one.is_out_of_domain]
    titled = {IN_DOMAIN: inside, OUT_OF_DOMAIN: outside} if outside else {"": inside}
    return [
        {
            "title": title,
            "tables": [_values(*of_metric, methods) for of_metric in _by_metric(group)],
            "paired": [_paired(*of_metric, methods) for of_metric in _by_compared(group)],
        }
        for title, group in titled.items()
        if group
    ]


def _by_metric(group: Sequence[SplitResults]) -> list[tuple[str, list[SplitResults]]]:
    """The test sets of each main metric: pages and boxes have no metric in common."""
    metrics = dict.fromkeys(headline_metric(one.results) for one in group)
    return [
        (metric, [one for one in group if headline_metric(one.results) == metric])
        for metric in metrics
    ]


def _by_compared(group: Sequence[SplitResults]) -> list[tuple[str, list[SplitResults]]]:
    """The test sets by the first metric in which the methods are compared there."""
    compared = [one for one in group if one.comparisons]
    metrics = dict.fromkeys(one.comparisons[0].metric for one in compared)
    return [
        (metric, [one for one in compared if one.comparisons[0].metric == metric])
        for metric in metrics
    ]


def _heads(metric: str, sets: Sequence[SplitResults]) -> Json:
    how = format_of(metric)
    return {
        "metric": how.label,
        "unit": how.unit.symbol,
        "points": how.points,
        "lower": not how.higher_is_better,
        "splits": [one.split for one in sets],
    }


def _values(metric: str, sets: Sequence[SplitResults], methods: Sequence[ReportedMethod]) -> Json:
    """One row per method, one column per test set."""
    best = [best_value(metric, one.results) for one in sets]
    rows = []
    for index, method in enumerate(methods):
        cells = [cell(metric, one.results[index].metrics) for one in sets]
        marked = [c | {"best": c["value"] == b} for c, b in zip(cells, best, strict=True)]
        rows.append({"method": method, "cells": marked})
    counts = [one.results[0].metrics[metric].n for one in sets]
    return {**_heads(metric, sets), "rows": rows, "counts": counts}


def _paired(metric: str, sets: Sequence[SplitResults], methods: Sequence[ReportedMethod]) -> Json:
    """The main method minus each other one: one row per method, one column per test set."""
    labels = {method.name: method.label for method in methods}
    how = format_of(metric)
    rows: dict[str, list[Json]] = {}
    for one in sets:
        for c in one.comparisons:
            if c.metric == metric:
                name = f"{labels[c.better]} − {labels[c.worse]}"
                numbers = {
                    "value": how.signed(c.difference),
                    "interval": how.interval(c.low, c.high, signed=True),
                    "p": p_value(c.p_value),
                }
                rows.setdefault(name, []).append(numbers)
    return {**_heads(metric, sets), "rows": rows}
