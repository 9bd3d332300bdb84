"""The table of results: one row per method, one column per metric."""

from collections.abc import Mapping, Sequence
from typing import Any

from perpo_pipeline.config.evaluations import BLANK_IMAGE, OTHER_IMAGE, Evaluation
from perpo_pipeline.evaluate.metrics import find_metric
from perpo_pipeline.report.page.contents import Contents
from perpo_pipeline.report.page.wording import format_of
from perpo_pipeline.report.results import Estimate, MethodResults, shared_metrics

Json = dict[str, Any]

MOST_BESIDE_IMAGES = 6
"""With more metrics than this, the evaluations with wrong images have a table of their own."""


def results_table(contents: Contents, headline: str) -> Json:
    """The data of the section; `headline` is the metric shown for other and blank images."""
    results = contents.results
    shared = shared_metrics([row.metrics for row in results])
    metrics = [
        name
        for name in shared
        if find_metric(name).in_report is not None and _is_shown(name, results)
    ]
    images = _image_columns(results, headline)
    apart = len(metrics) > MOST_BESIDE_IMAGES
    units = {format_of(name).unit.symbol for name in metrics}
    return {
        "heads": [_head(name, with_unit="" in units and len(units) > 1) for name in metrics],
        "image_heads": [] if apart else list(images.values()),
        "images": _images(results, list(images), headline) if apart and images else None,
        "rows": _rows(results, metrics, [] if apart else list(images), headline),
        "seeds": [
            {"name": variant, "cells": [cell(name, values) for name in metrics]}
            for row in results
            for variant, values in row.seeds.items()
        ],
        "oracle": _oracle(contents, metrics),
        "lower": [format_of(n).label for n in metrics if not format_of(n).higher_is_better],
    }


def _oracle(contents: Contents, metrics: Sequence[str]) -> Json | None:
    """The row of the best of all samples, unless nothing is known of it."""
    if (best := contents.oracle) is None:
        return None
    cells = [cell(name, best.metrics) for name in metrics]
    return {"cells": cells, "lists": best.lists, "size": best.size}


def _head(name: str, *, with_unit: bool) -> Json:
    """The head of a column; the unit stands in it where columns differ in theirs."""
    how = format_of(name)
    return {
        "label": how.label,
        "unit": how.unit.symbol if with_unit else "",
        "lower": not how.higher_is_better,
    }


def _images(results: Sequence[MethodResults], images: Sequence[str], metric: str) -> Json:
    """The main metric with the matching image and with others, as a table of its own."""
    how = format_of(metric)
    shown = {"": "matching image"} | {image: _image_name(image) for image in images}
    rows = [
        {
            "method": row.method,
            "cells": [
                cell(metric, row.conditions[image] if image else row.metrics) for image in shown
            ],
        }
        for row in results
    ]
    first = results[0]
    counts = [(first.conditions[image] if image else first.metrics).get(metric) for image in shown]
    return {
        "metric": how.label,
        "axis": how.directed,
        "heads": list(shown.values()),
        "rows": rows,
        "counts": [one.n if one else 0 for one in counts],
    }


def _image_name(image: str) -> str:
    return image.removeprefix("-").replace("-", " ")


def _is_shown(name: str, results: Sequence[MethodResults]) -> bool:
    """A metric in which no direction is better is shown if it is not 0 for all."""
    is_neutral = find_metric(name).higher_is_better is None
    return not is_neutral or any(row.metrics[name].value for row in results)


def missing_answers(contents: Contents) -> Json:
    """The data of the section: the kinds of missing answers that there are, a row per evaluation.

    Empty if every prompt has a whole answer.
    """
    rows = [row for row in contents.answered if not row.is_complete]
    kinds = {
        "unanswered": "unanswered",
        "cut_off": "cut off",
        "no_answer": "thought without end",
    }
    there = {kind: label for kind, label in kinds.items() if any(getattr(r, kind) for r in rows)}
    return {
        "kinds": there,
        "rows": [
            {
                "name": Evaluation(row.model, row.split).name,
                "prompts": row.prompts,
                "counts": [getattr(row, kind) for kind in there],
            }
            for row in rows
        ],
    }


def cell(name: str, metrics: Mapping[str, Estimate]) -> Json:
    """Value and interval of a metric as text; a dash if it was not measured."""
    if name not in metrics:
        return {"value": "–", "interval": ""}
    how, estimate = format_of(name), metrics[name]
    return {
        "value": how.number(estimate.value),
        "interval": how.interval(estimate.low, estimate.high),
    }


def _image_columns(results: Sequence[MethodResults], metric: str) -> dict[str, str]:
    """Column heads by the suffix of the evaluations with another image or a blank one."""
    return {
        image: f"{format_of(metric).label}, {_image_name(image)}"
        for image in (OTHER_IMAGE, BLANK_IMAGE)
        if any(row.conditions[image] for row in results)
    }


def _rows(
    results: Sequence[MethodResults], metrics: Sequence[str], images: Sequence[str], headline: str
) -> list[Json]:
    best = {name: best_value(name, results) for name in metrics}
    base = next((row.metrics for row in results if row.method.is_base), {})
    rows = []
    for row in results:
        cells = [cell(name, row.metrics) for name in metrics]
        marked = [
            one | {"best": one["value"] == best[name], "as_base": _as_base(row, name, base)}
            for name, one in zip(metrics, cells, strict=True)
        ]
        other = [cell(headline, row.conditions[image]) | {"best": False} for image in images]
        rows.append({"method": row.method, "cells": marked + other, "n": row.metrics[headline].n})
    return rows


def _as_base(row: MethodResults, name: str, base: Mapping[str, Estimate]) -> bool:
    """Whether a trained method has exactly the base's value."""
    return not row.method.is_base and name in base and row.metrics[name].value == base[name].value


def best_value(name: str, results: Sequence[MethodResults]) -> str | None:
    """The best value of a column as it is written; None if all rows show the same.

    None as well for a metric in which no direction is better.
    """
    how = format_of(name)
    if find_metric(name).higher_is_better is None:
        return None
    values = [row.metrics[name].value for row in results]
    if len({how.number(value) for value in values}) == 1:
        return None
    return how.number(max(values) if how.higher_is_better else min(values))
