"""The headline: the first metric before and after training, in numbers, sentences and one plot."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from perpo_pipeline.config.evaluations import BASE, OTHER_IMAGE
from perpo_pipeline.evaluate.metrics import find_metric, main_metric
from perpo_pipeline.report.methods import ReportedMethod
from perpo_pipeline.report.page import plots
from perpo_pipeline.report.page.contents import Contents
from perpo_pipeline.report.page.results import cell
from perpo_pipeline.report.page.wording import (
    MetricFormat,
    format_of,
    other_image_sentence,
    paired_sentence,
    verdict,
)
from perpo_pipeline.report.paired import Comparison
from perpo_pipeline.report.results import MethodResults

Json = dict[str, Any]


def headline_metric(results: Sequence[MethodResults]) -> str:
    """The metric of the headline: the first in METRICS that the report shows and the run has."""
    return main_metric(results[0].metrics)


def headline(contents: Contents) -> Json:
    """The data of the section; without a trained method it has the plot only."""
    metric = headline_metric(contents.results)
    how = format_of(metric)
    rows = {row.method.name: row for row in contents.results}
    main = contents.main
    ends = [rows[name] for name in (BASE, main.name) if name in rows] if main else []
    return {
        "metric": how.label,
        "unit": how.unit.symbol,
        "plot": Markup(_plot(contents.results, metric, how)),
        "numbers": [
            cell(metric, row.metrics) | {"label": row.method.label, "colour": row.method.colour}
            for row in ends
        ],
        "sentences": _sentences(contents, metric, main) if main else [],
    }


def _plot(results: Sequence[MethodResults], metric: str, how: MetricFormat) -> str:
    bars = [
        plots.Bar(row.method.label, row.method.colour, e.value, e.low, e.high)
        for row in results
        for e in [row.metrics[metric]]
    ]
    return plots.interval_plot(
        bars, x_label=how.directed, unit=how.unit, name=f"{how.label} by method"
    )


def _sentences(contents: Contents, metric: str, main: ReportedMethod) -> list[str]:
    rows = {row.method.name: row for row in contents.results}
    after = rows[main.name].metrics[metric]
    sentences = []
    if BASE in rows:
        before = rows[BASE].metrics[metric]
        paired = _paired(contents, metric)
        sentences.append(verdict(metric, main.label, before, after, paired))
        sentences += [paired_sentence(paired)] if paired else []
        sentences += _other_tasks(contents, metric, main)
    other = rows[main.name].conditions[OTHER_IMAGE].get(metric)
    if other is not None:
        sentences.append(other_image_sentence(metric, main.label, after, other))
    return sentences


def _paired(contents: Contents, metric: str) -> Comparison | None:
    """The difference to the base that says the most of a metric, on the prompts that have it."""
    found = {c.metric: c for c in contents.comparisons if c.worse == BASE}
    tasks = contents.outcomes.tasks & {*find_metric(metric).tasks}
    near = [name for name in found if tasks & {*find_metric(name).compared_on}]
    if contents.outcomes.task is not None:
        near.append("mean_reward")
    return next((found[name] for name in (metric, *near) if name in found), None)


def _other_tasks(contents: Contents, headline: str, main: ReportedMethod) -> list[str]:
    """A sentence for each further task of a split that mixes several, in its first metric."""
    rows = {row.method.name: row.metrics for row in contents.results}
    parts = contents.outcomes.tasks - set(find_metric(headline).tasks)
    found = []
    for comparison in contents.comparisons:
        name = comparison.metric
        tasks = parts & set(find_metric(name).compared_on)
        if comparison.worse == BASE and tasks and name in rows[main.name]:
            parts -= tasks
            both = (rows[BASE][name], rows[main.name][name])
            found.append(verdict(name, main.label, *both, comparison))
    return found
