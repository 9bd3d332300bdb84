"""The paired comparison: the main method minus each other one, one panel per metric."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from perpo_pipeline.report.methods import ReportedMethod
from perpo_pipeline.report.page import plots
from perpo_pipeline.report.page.contents import Contents
from perpo_pipeline.report.page.wording import format_of, p_value, unsettled
from perpo_pipeline.report.paired import Comparison

Json = dict[str, Any]


def paired_panels(contents: Contents) -> list[Json]:
    """The data of the section: a plot and its numbers for each compared metric."""
    methods = {row.method.name: row.method for row in contents.results}
    metrics = dict.fromkeys(c.metric for c in contents.comparisons)
    return [
        _panel(metric, [c for c in contents.comparisons if c.metric == metric], methods)
        for metric in metrics
    ]


def _panel(
    metric: str, comparisons: Sequence[Comparison], methods: Mapping[str, ReportedMethod]
) -> Json:
    how = format_of(metric)
    main = methods[comparisons[0].better].label
    bars = [
        plots.Bar(f"− {other.label}", other.colour, c.difference, c.low, c.high)
        for c in comparisons
        for other in [methods[c.worse]]
    ]
    svg = plots.interval_plot(
        bars,
        x_label=f"{main} minus the other{how.points and ', ' + how.points}",
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
            "unsettled": "" if c.is_settled or c.low != c.low else unsettled(c),
        }
        for c in comparisons
    ]
    return {"title": how.label, "plot": Markup(svg), "lines": lines}
