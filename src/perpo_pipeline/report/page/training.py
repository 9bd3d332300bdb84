"""The training: its curves and its settings."""

from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from perpo_pipeline.config.methods import METHODS
from perpo_pipeline.report.methods import ReportedMethod
from perpo_pipeline.report.page import plots
from perpo_pipeline.report.page.contents import Contents
from perpo_pipeline.report.page.wording import duration
from perpo_pipeline.report.training_log import CURVES, Trained

Json = dict[str, Any]

TERMS = {"reward_accuracy": "reward accuracy", "implicit_margin": "implicit margin"}
"""The glossary's words for curves that need one."""
WHERE_SET = {"reward_temperature": "reward temperature", "order": "order"}
"""Settings that have a column only where an adapter's manifest records one, with its title."""


def training(contents: Contents) -> Json:
    """The data of the section: one panel per curve and one row of settings per method."""
    methods = [row.method for row in contents.results if not row.method.is_base]
    panels = [panel for curve in CURVES for panel in _panels(contents, curve, methods)]
    recorded = [contents.settings[method.variants[0]] for method in methods]
    more, values = columns_where_set(recorded)
    settings = [
        {**_settings(contents, method), "more": own}
        for method, own in zip(methods, values, strict=True)
    ]
    fingerprints = {contents.trained[v].fingerprint for m in methods for v in m.variants}
    return {
        "panels": panels,
        "methods": methods,
        "settings": settings,
        "more": more,
        "different_lists": len(fingerprints) > 1,
    }


def _panels(contents: Contents, curve: str, methods: Sequence[ReportedMethod]) -> list[Json]:
    panels = []
    for title, shared in axes(curve, methods):
        drawn = [
            plots.Curve(method.colour, log["step"], log[curve])
            for method in shared
            for log in (contents.curves[variant] for variant in method.variants)
            if (log[curve] == log[curve]).any()
        ]
        if drawn:
            svg = Markup(plots.curve_plot(drawn, name=title))
            panels.append({"title": title, "term": TERMS.get(curve, ""), "plot": svg})
    return panels


def axes(
    curve: str, methods: Sequence[ReportedMethod]
) -> list[tuple[str, Sequence[ReportedMethod]]]:
    """The titles of a curve's panels with the methods that share each.

    Losses of another size, such as that per token of the truth, have their own axes.
    """
    title = CURVES[curve]
    on_lists = [method for method in methods if METHODS[method.kind].needs_preferences]
    on_truth = [method for method in methods if method not in on_lists]
    groups: dict[str, list[ReportedMethod]] = {}
    for method in on_lists:
        groups.setdefault(METHODS[method.kind].loss_size, []).append(method)
    if curve != "loss" or len(groups) + bool(on_truth) < 2:
        return [(title, methods)]
    panels: list[tuple[str, Sequence[ReportedMethod]]] = [
        (f"{title} ({_labels(group)})", group) for group in groups.values()
    ]
    if on_truth:
        panels.append((f"{title} ({_labels(on_truth)}, cross-entropy)", on_truth))
    return panels


def _labels(methods: Sequence[ReportedMethod]) -> str:
    return ", ".join(method.label for method in methods)


def columns_where_set(recorded: Sequence[Json]) -> tuple[list[str], list[list[str]]]:
    """The titles of the columns that only some runs have, and each adapter's values for them."""
    used = [name for name in WHERE_SET if any(name in one for one in recorded)]
    values = [[_shown(one.get(name)) for name in used] for one in recorded]
    return [WHERE_SET[name] for name in used], values


def _shown(value: float | str | None) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:g}"


def _settings(contents: Contents, method: ReportedMethod) -> Json:
    """What the adapter's manifest records of its settings, its lists and its steps."""
    one = contents.settings[method.variants[0]]
    trained = [contents.trained[variant] for variant in method.variants]
    uses = METHODS[one["method"]].uses
    lora = one.get("lora")
    return {
        "name": method.name,
        "label": method.label,
        "learning_rate": f"{one['learning_rate']:g}",
        "beta": f"{one['beta']:g}" if uses("beta") else "–",
        "gamma": f"{one['gamma']:g}" if uses("gamma") else "–",
        "epochs": f"{one['epochs']:g}",
        "batch": one["batch_size"],
        "lora": f"{lora['rank']} / {lora['alpha']}" if lora else "–",
        "seeds": ", ".join(str(contents.settings[v]["seed"]) for v in method.variants),
        "lists": _each(trained, lambda t: f"{t.used:,}" + (f" ({t.tasks})" if t.tasks else "")),
        "min_margin": _each(trained, lambda t: t.min_margin),
        "steps": _each(trained, lambda t: f"{t.steps:,}"),
        "time": duration(sum(t.wall_s for t in trained) / len(trained)),
    }


def _each(trained: Sequence[Trained], write: Callable[[Trained], str]) -> str:
    """The different values of a method's seeds; one value if they agree."""
    return ", ".join(dict.fromkeys(write(one) for one in trained))
