"""The rows of the page: the methods that a run compares, their order, names and colours."""

from dataclasses import dataclass
from itertools import cycle

from perpo_pipeline.config.run import BASE, RunConfig

LABELS = {
    BASE: "Base",
    "sft": "SFT",
    "dpo": "DPO",
    "lipo": "LiPO",
    "lipo-lambda": "LiPO-λ",
    "perpo": "PerPO",
}
"""Labels of the methods, in the order of the paper's Table 1 (the plain model first, ours last)."""
COLOURS = {
    BASE: "#d0601a",
    "sft": "#7b57b8",
    "dpo": "#0b857c",
    "lipo": "#8a7400",
    "lipo-lambda": "#b03a75",
    "perpo": "#1d5fd1",
}
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
    order = list(LABELS)
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
        own = name == kind
        colour = COLOURS[kind] if own else next(more)
        methods.append(Method(name, LABELS[kind] if own else name, colour, kind, variants))
    return methods
