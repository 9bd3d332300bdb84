"""The rows of the page: the methods that a run compares, their order, names and colours."""

from dataclasses import dataclass
from itertools import cycle

from perpo_pipeline.config.evaluations import BASE
from perpo_pipeline.config.methods import METHODS
from perpo_pipeline.config.run import RunConfig

BASE_LABEL, BASE_COLOUR = "Base", "#d0601a"
MORE_COLOURS = ("#5f6b7a", "#9c5b4b", "#3f7f3f", "#8e8e8e", "#3aa0c9", "#a06fc0")


@dataclass(frozen=True)
class Method:
    """One row: a method with all its variants (several where there are several seeds)."""

    name: str
    label: str
    colour: str
    kind: str
    variants: tuple[str, ...]


def methods_of(config: RunConfig) -> list[Method]:
    """The evaluated methods: base first, then as in the paper's table; methods of one kind stay in
    the order of the configuration."""
    evaluated = config.eval_models()
    several = len(config.train.seeds) > 1
    settings = config.train.variants()
    rows = [(BASE, BASE, tuple(v for v in evaluated if v == BASE))]
    for name in config.train.methods:
        own = [f"{name}-seed{seed}" for seed in config.train.seeds] if several else [name]
        rows.append((name, settings[own[0]].method, tuple(v for v in own if v in evaluated)))
    order = [BASE, *METHODS]
    rows = sorted((row for row in rows if row[2]), key=lambda row: order.index(row[1]))
    return _with_colours(rows)


def main_method(methods: list[Method]) -> Method | None:
    """The method that the page is about: `perpo`, else the last trained one; None if none is."""
    trained = [method for method in methods if method.kind != BASE]
    named = [method for method in trained if method.name == "perpo"]
    chosen = named or trained[-1:]
    return chosen[0] if chosen else None


def _with_colours(rows: list[tuple[str, str, tuple[str, ...]]]) -> list[Method]:
    more = cycle(MORE_COLOURS)
    methods = []
    for name, kind, variants in rows:
        label, colour = _label_and_colour(kind) if name == kind else (name, next(more))
        methods.append(Method(name, label, colour, kind, variants))
    return methods


def _label_and_colour(kind: str) -> tuple[str, str]:
    if kind == BASE:
        return BASE_LABEL, BASE_COLOUR
    return METHODS[kind].label, METHODS[kind].colour
