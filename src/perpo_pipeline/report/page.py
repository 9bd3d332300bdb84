"""The page itself: the data put into words, tables and plots, rendered by one template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import jinja2
from markupsafe import Markup

from perpo_pipeline.config.evaluations import BASE, BLANK_IMAGE, OTHER_IMAGE
from perpo_pipeline.config.methods import METHODS
from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.evaluate.metrics import METRICS, find_metric
from perpo_pipeline.report import plots
from perpo_pipeline.report.data import (
    CURVES,
    Comparison,
    Estimate,
    Floats,
    Outcomes,
    Sampled,
    TableRow,
    shared_metrics,
)
from perpo_pipeline.report.lineage import Ancestor
from perpo_pipeline.report.methods import BASE_COLOUR, Method
from perpo_pipeline.report.pictures import Picture
from perpo_pipeline.report.wording import (
    blindness,
    duration,
    p_value,
    paired_sentence,
    shown,
    verdict,
)

CURVE_TITLES = {
    "loss": "Loss",
    "reward_accuracy": "Reward accuracy",
    "implicit_margin": "Implicit margin (nats)",
    "best_logp": "Log-prob. of the best answers (nats)",
    "learning_rate": "Learning rate",
}
DROP_REASONS = {
    "no_preference": "no difference in reward",
    "margin_too_small": "margin too small",
    "over_cap": "over the cap",
}
KEPT_COLOUR, UNPARSED_COLOUR = "#1d5fd1", "#d0601a"
DROPPED_COLOURS = ("#b9c0c9", "#8d97a3", "#dfe3e8", "#6f7985")

Json = dict[str, Any]


@dataclass(frozen=True)
class Contents:
    """All that the page shows."""

    title: str
    run_name: str
    model_id: str
    rows: Sequence[TableRow]
    oracle: Mapping[str, Estimate]
    main: Method | None
    outcomes: Outcomes
    comparisons: Sequence[Comparison]
    settings: Mapping[str, TrainSettings]
    curves: Mapping[str, Mapping[str, Floats]]
    train_s: Mapping[str, float]
    sampled: Sampled
    sampled_split: str
    pictures: Sequence[Picture]
    outcome_counts: Mapping[str, int]
    lineage: Sequence[Ancestor]


def render(contents: Contents) -> str:
    """The whole page as HTML; everything but our own SVG is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("perpo_pipeline.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["duration"] = duration
    template = environment.get_template("page.html")
    return template.render(
        c=contents,
        facts=_facts(contents),
        headline=_headline(contents),
        table=_table(contents),
        forest=_forest(contents),
        training=_training(contents),
        samples=_samples(contents),
        lineage=_lineage(contents),
    )


def _facts(contents: Contents) -> Json:
    prompts = contents.outcomes.prompts
    return {
        "datasets": ", ".join(prompts["dataset"].unique().sort()),
        "split": ", ".join(prompts["split"].unique().sort()),
        "prompts": prompts.height,
        "images": prompts["image_sha256"].n_unique(),
    }


def primary_metric(rows: Sequence[TableRow]) -> str:
    """The metric that the headline is about: of the first row's, the first one in METRICS."""
    metrics = rows[0].metrics
    known = [m.name for m in METRICS.values() if m.in_report is not None and m.name in metrics]
    return (known or list(metrics))[0]


def _headline(contents: Contents) -> Json:
    metric = primary_metric(contents.rows)
    how = shown(metric)
    of_name = {row.method.name: row for row in contents.rows}
    bars = [
        plots.Bar(row.method.label, row.method.colour, e.value, e.low, e.high)
        for row in contents.rows
        for e in [row.metrics[metric]]
    ]
    x_label = how.label + (f", {how.unit.symbol}" if how.unit.symbol else "")
    found: Json = {
        "metric": how.label,
        "unit": how.unit.symbol,
        "plot": Markup(
            plots.interval_plot(
                bars,
                x_label=x_label,
                scale=how.unit.factor,
                decimals=how.unit.decimals,
                name=f"{how.label} by method",
            )
        ),
        "numbers": [],
        "sentences": [],
    }
    main = contents.main
    if main is None:
        return found
    after = of_name[main.name].metrics[metric]
    ends = [row for row in (of_name.get(BASE), of_name[main.name]) if row is not None]
    found["numbers"] = [
        _cell(metric, row.metrics) | {"label": row.method.label, "colour": row.method.colour}
        for row in ends
    ]
    if BASE in of_name:
        before = of_name[BASE].metrics[metric]
        paired = [c for c in contents.comparisons if c.worse == BASE]
        found["sentences"].append(
            verdict(metric, main.label, before, after, paired[0] if paired else None)
        )
        found["sentences"] += [paired_sentence(c) for c in paired[:1]]
    other = of_name[main.name].conditions[OTHER_IMAGE].get(metric)
    if other is not None:
        found["sentences"].append(blindness(metric, main.label, after, other))
    return found


def _table(contents: Contents) -> Json:
    shared = shared_metrics([row.metrics for row in contents.rows])
    metrics = [name for name in shared if find_metric(name).in_report is not None]
    primary = primary_metric(contents.rows)
    best = {name: _best(name, contents.rows) for name in metrics}
    images = {
        image: f"{shown(primary).label}, {image.removeprefix('-').replace('-', ' ')}"
        for image in (OTHER_IMAGE, BLANK_IMAGE)
        if any(row.conditions[image] for row in contents.rows)
    }
    rows = []
    for row in contents.rows:
        cells = [
            _cell(name, row.metrics) | {"best": row.metrics[name].value == best[name]}
            for name in metrics
        ]
        other = [_cell(primary, row.conditions[image]) | {"best": False} for image in images]
        rows.append({"method": row.method, "cells": cells + other, "n": row.metrics[primary].n})
    seeds = [
        {"name": variant, "cells": [_cell(name, values) for name in metrics]}
        for row in contents.rows
        for variant, values in row.seeds.items()
    ]
    heads = [shown(name).label for name in metrics]
    return {
        "heads": heads,
        "image_heads": list(images.values()),
        "rows": rows,
        "seeds": seeds,
        "oracle": [_cell(name, contents.oracle) for name in metrics],
        "oracle_n": contents.sampled.rewards.shape[0],
        "oracle_size": contents.sampled.rewards.shape[1],
        "lower": [shown(n).label for n in metrics if not shown(n).higher_is_better],
    }


def _best(name: str, rows: Sequence[TableRow]) -> float | None:
    """The best value of a column; None where all rows have the same."""
    values = [row.metrics[name].value for row in rows]
    if len(set(values)) == 1:
        return None
    return max(values) if shown(name).higher_is_better else min(values)


def _cell(name: str, metrics: Mapping[str, Estimate]) -> Json:
    if name not in metrics:
        return {"value": "–", "interval": ""}
    how, estimate = shown(name), metrics[name]
    return {
        "value": how.number(estimate.value),
        "interval": how.interval(estimate.low, estimate.high),
    }


def _forest(contents: Contents) -> list[Json]:
    methods = {row.method.name: row.method for row in contents.rows}
    panels = []
    for metric in dict.fromkeys(c.metric for c in contents.comparisons):
        of_metric = [c for c in contents.comparisons if c.metric == metric]
        how = shown(metric)
        bars = [
            plots.Bar(
                f"− {methods[c.worse].label}", methods[c.worse].colour, c.difference, c.low, c.high
            )
            for c in of_metric
        ]
        better = methods[of_metric[0].better].label
        panels.append(
            {
                "title": how.label,
                "plot": Markup(
                    plots.interval_plot(
                        bars,
                        x_label=f"{better} minus the other, points",
                        zero=True,
                        name=f"{better} minus the others, {how.label}",
                    )
                ),
                "lines": [
                    {
                        "name": f"{better} − {methods[c.worse].label}",
                        "value": how.signed(c.difference),
                        "interval": how.interval(c.low, c.high, signed=True),
                        "p": p_value(c.p_value),
                    }
                    for c in of_metric
                ],
            }
        )
    return panels


def _training(contents: Contents) -> Json:
    methods = [row.method for row in contents.rows if row.method.kind != BASE]
    panels = []
    for curve in CURVES:
        for title, shared in _axes_of(curve, methods):
            drawn = [
                plots.Curve(method.colour, log["step"], log[curve])
                for method in shared
                for log in (contents.curves[variant] for variant in method.variants)
                if (log[curve] == log[curve]).any()
            ]
            if drawn:
                svg = Markup(plots.curve_plot(drawn, name=title))
                panels.append({"title": title, "plot": svg})
    return {"panels": panels, "methods": methods, "settings": _settings(contents, methods)}


def _axes_of(curve: str, methods: Sequence[Method]) -> list[tuple[str, list[Method]]]:
    """A loss per token of the truth and a loss per list differ: each has its own axes."""
    title = CURVE_TITLES[curve]
    others = [method for method in methods if METHODS[method.kind].needs_preferences]
    sft = [method for method in methods if method not in others]
    if curve != "loss" or not sft or not others:
        return [(title, list(methods))]
    labels = ", ".join(method.label for method in others)
    truth = ", ".join(method.label for method in sft)
    return [(f"{title} ({labels})", others), (f"{title} ({truth}, cross-entropy)", sft)]


def _settings(contents: Contents, methods: Sequence[Method]) -> list[Json]:
    rows = []
    for method in methods:
        one = contents.settings[method.variants[0]]
        seconds = [contents.train_s[variant] for variant in method.variants]
        rows.append(
            {
                "label": method.label,
                "learning_rate": f"{one.learning_rate:g}",
                "beta": f"{one.beta:g}" if one.chosen_method.uses("beta") else "–",
                "gamma": f"{one.gamma:g}" if one.chosen_method.uses("gamma") else "–",
                "epochs": f"{one.epochs:g}",
                "batch": one.batch_size,
                "lora": f"{one.lora.rank} / {one.lora.alpha}",
                "seeds": ", ".join(str(contents.settings[v].seed) for v in method.variants),
                "time": duration(sum(seconds) / len(seconds)),
            }
        )
    return rows


def _samples(contents: Contents) -> Json:
    sampled = contents.sampled
    rewards, parsed = sampled.rewards.ravel(), sampled.parse_ok.ravel()
    reward_parts = [
        plots.Part("read", KEPT_COLOUR, rewards[parsed]),
        plots.Part("could not be read", UNPARSED_COLOUR, rewards[~parsed]),
    ]
    margin_parts = [plots.Part("kept", KEPT_COLOUR, sampled.kept_margins)] + [
        plots.Part(f"dropped: {DROP_REASONS.get(reason, reason)}", grey, margins)
        for (reason, margins), grey in zip(
            sampled.dropped_margins.items(), cycle(DROPPED_COLOURS), strict=False
        )
    ]
    best = sampled.best_of_n()
    how = shown(sampled.metric.name)
    return {
        "split": contents.sampled_split,
        "lists": rewards.size // sampled.rewards.shape[1],
        "size": sampled.rewards.shape[1],
        "unparsed": f"{100 * float((~parsed).mean()):.1f}",
        "kept": len(sampled.kept_margins),
        "min_margin": f"{sampled.min_margin:g}",
        "reward_parts": reward_parts,
        "margin_parts": margin_parts,
        "by_unparsed": sampled.counts["kept_by_unparsed_only"],
        "best_label": how.label,
        "best_first": how.number(float(best[0])),
        "best_last": how.number(float(best[-1])),
        "rewards": Markup(
            plots.histogram(
                reward_parts, x_label="reward", y_label="samples", name="Rewards of all samples"
            )
        ),
        "margins": Markup(
            plots.histogram(
                margin_parts,
                x_label="margin (largest reward − smallest)",
                y_label="lists",
                name="Margins of all lists",
                threshold=sampled.min_margin,
            )
        ),
        "best_of_n": Markup(
            plots.best_of_n_plot(
                best,
                y_label=f"{how.label}, %",
                colour=BASE_COLOUR,
                name=f"{how.label} of the best of n samples",
            )
        ),
    }


def _lineage(contents: Contents) -> Json:
    versions = contents.lineage
    packages = sorted({pair for version in versions for pair in version.packages})
    commits = sorted({v.git_commit for v in versions if v.git_commit})
    return {
        "total_s": sum(version.wall_s for version in versions),
        "packages": packages,
        "commits": commits,
    }
