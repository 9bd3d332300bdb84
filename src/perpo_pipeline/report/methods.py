"""The methods that a run compares, with their order, labels and colours on the page."""

from dataclasses import dataclass
from itertools import cycle

from perpo_pipeline.config.evaluations import BASE
from perpo_pipeline.config.methods import METHODS
from perpo_pipeline.config.run import RunConfig

BASE_LABEL, BASE_COLOUR = "Base", "#d0601a"
MORE_COLOURS = ("#5f6b7a", "#9c5b4b", "#3f7f3f", "#8e8e8e", "#3aa0c9", "#a06fc0")
"""Colours of entries of `train.methods` that have a name of their own, as in a grid of settings."""


@dataclass(frozen=True)
class ReportedMethod:
    """One row of the results: the base model, or an entry of `train.methods`.

    `kind` is BASE or a key of METHODS. `variants` are the evaluated models, one per seed.
    """

    name: str
    label: str
    colour: str
    kind: str
    variants: tuple[str, ...]

    @property
    def is_base(self) -> bool:
        """Whether this is the model before training."""
        return self.kind == BASE


def reported_methods(config: RunConfig) -> list[ReportedMethod]:
    """The evaluated methods: the base first, then in the order of METHODS.

    Entries with the same method keep the order of the configuration.
    """
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


def main_method(methods: list[ReportedMethod]) -> ReportedMethod | None:
    """The method that the headline is about: `perpo`, else the last trained one, else None."""
    trained = [method for method in methods if not method.is_base]
    named = [method for method in trained if method.name == "perpo"]
    chosen = named or trained[-1:]
    return chosen[0] if chosen else None


def _with_colours(rows: list[tuple[str, str, tuple[str, ...]]]) -> list[ReportedMethod]:
    more = cycle(MORE_COLOURS)
    methods = []
    for name, kind, variants in rows:
        label, colour = _label_and_colour(kind) if name == kind else (name, next(more))
        methods.append(ReportedMethod(name, label, colour, kind, variants))
    return methods


def _label_and_colour(kind: str) -> tuple[str, str]:
    if kind == BASE:
        return BASE_LABEL, BASE_COLOUR
    return METHODS[kind].label, METHODS[kind].colour
