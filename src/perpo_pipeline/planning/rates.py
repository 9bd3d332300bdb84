"""Seconds per prompt or list of each stage: what the three sources of times have in common."""

from dataclasses import dataclass

Key = tuple[str, str]
"""A stage and what of it: ("sample", ""), ("train", "perpo"), ("eval", ""), and ("reference", "")
or, behind blank images, ("reference", "blank")."""

ROWS_PER_S = 234_000  # of score and filter, written: benchmarks/RESULTS.md, `stream`


@dataclass(frozen=True)
class Rate:
    """Seconds for one prompt or list, from `low` to `high`, and where they are from.

    `start` is what a command takes before the first one, also from low to high.
    """

    low: float
    high: float
    source: str
    start: tuple[float, float] = (0.0, 0.0)


Rates = dict[Key, Rate]
