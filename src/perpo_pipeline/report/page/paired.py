"""The paired comparison: the main method minus each other one.

One panel per metric; of pages one panel for the edit distance, and one table for all metrics.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from perpo_pipeline.evaluate.ocr import FOX_METRICS
from perpo_pipeline.report.methods import ReportedMethod
from perpo_pipeline.report.page import plots
from perpo_pipeline.report.page.contents import Contents
from perpo_pipeline.report.page.wording import format_of, p_value, points_to_show, unsettled
from perpo_pipeline.report.paired import Comparison

Json = dict[str, Any]

PAGES, *_MORE = FOX_METRICS
IN_TABLE = (*_MORE, "mean_reward")
"""Metrics without a panel where pages are compared: the mean reward is their distance's mirror."""


def paired_panels(contents: Contents) -> list[Json]:
    """The data of the section: a plot and its numbers for each compared metric."""
    methods = {row.method.name: row.method for row in contents.results}
    metrics = list(dict.fromkeys(c.metric for c in contents.comparisons))
    if PAGES in metrics:
        metrics = [name for name in metrics if name not in IN_TABLE]
    return [
        _panel(metric, [c for c in contents.comparisons if c.metric == metric], methods)
        for metric in metrics
    ]


def paired_table(contents: Contents) -> Json | None:
    """The differences between pages in all FOX_METRICS: a row per method, a column per metric."""
    labels = {row.method.name: row.method.label for row in contents.results}
    shown = [c for c in contents.comparisons if c.metric in FOX_METRICS]
    if not shown:
        return None
    rows: dict[str, list[Json]] = {}
    for c in shown:
        rows.setdefault(f"{labels[c.better]} − {labels[c.worse]}", []).append(_cell(c))
    formats = [format_of(metric) for metric in dict.fromkeys(c.metric for c in shown)]
    return {
        "heads": [
            {"label": how.label, "unit": how.points, "lower": not how.higher_is_better}
            for how in formats
        ],
        "rows": rows,
    }


def _cell(c: Comparison) -> Json:
    """A difference with its interval, its p-value and, if both show one, better or worse."""
    how = format_of(c.metric)
    judged = "borderline" if c.is_borderline else ""
    if c.is_settled:
        judged = how.judged(c.difference)
    return {
        "value": how.signed(c.difference),
        "interval": how.interval(c.low, c.high, signed=True),
        "p": p_value(c.p_value),
        "judged": judged,
        "kind": {"better": "improved", "worse": "worsened"}.get(judged, "unchanged"),
    }


def _panel(
    metric: str, comparisons: Sequence[Comparison], methods: Mapping[str, ReportedMethod]
) -> Json:
    how = format_of(metric)
    lower = not how.higher_is_better
    main = methods[comparisons[0].better].label
    bars = [
        plots.Bar(f"− {other.label}", other.colour, c.difference, c.low, c.high)
        for c in comparisons
        for other in [methods[c.worse]]
    ]
    svg = plots.interval_plot(
        bars,
        x_label=f"{main} minus the other{how.points and ', ' + how.points}"
        + ("" if how.higher_is_better else " (below 0 is better)"),
        unit=how.unit,
        zero=True,
        name=f"{main} minus the others, {how.label}",
    )
    lines = [
        {
            "name": f"{main} − {methods[c.worse].label}",
            "value": how.signed(c.difference),
            "interval": how.interval(c.low, c.high, signed=True),
            "p": p_value(c.p_value),
            "judged": how.judged(c.difference) if c.is_settled and lower else "",
            "unsettled": "" if c.is_settled or c.low != c.low else unsettled(c),
        }
        for c in comparisons
    ]
    return {
        "title": how.label,
        "lower": lower,
        "plot": Markup(svg),
        "lines": lines,
        "step": points_to_show(metric),
    }
