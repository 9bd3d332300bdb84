"""Margins of lists: bins that show a threshold, and how many lists each threshold would keep.

`perpo filter` prints them, its manifest records them, and the report draws them.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

ROUNDING = 1e-9
TENTHS = tuple(step / 10 for step in range(11))
BAR = 30  # characters

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def margin_edges(threshold: float, margins: Floats) -> list[float]:
    """Edges of bins over [0, 1] that show `threshold`: tenths, and hundredths where they matter.

    Hundredths divide the tenth that the threshold cuts, and the first tenth where it holds more
    than half of `margins`, as margins of edit distances do. A threshold between two hundredths is
    an edge, too.
    """
    edges = {*TENTHS, threshold}
    cut = int(threshold * 10 + ROUNDING)
    if abs(threshold * 10 - round(threshold * 10)) > 10 * ROUNDING:
        edges |= _hundredths(cut)
    if len(margins) and np.mean(margins < TENTHS[1] - ROUNDING) > 0.5:
        edges |= _hundredths(0)
    by_text = {edge_text(edge): edge for edge in sorted({round(edge, 9) for edge in edges})}
    by_text[edge_text(threshold)] = round(threshold, 9)  # one edge where two would read the same
    return sorted(by_text.values())


def _hundredths(tenth: int) -> set[float]:
    return {(10 * tenth + step) / 100 for step in range(11)}


def count_margins(margins: Floats, usable: Bools, edges: Sequence[float]) -> dict[str, Any]:
    """`histogram`: lists in each bin between `edges`, the last one closed; `kept_at`: how many
    lists each edge would keep as `min_margin`, by the edge as text.

    `usable` says which lists no other rule drops; a list with margin 0 is never kept.
    """
    inner = np.asarray(edges[1:-1]) - ROUNDING
    places = np.searchsorted(inner, margins, side="right")
    strict = margins[usable & (margins > 0)]
    return {
        "histogram": [int(n) for n in np.bincount(places, minlength=len(edges) - 1)],
        "kept_at": {edge_text(e): int((strict >= e - ROUNDING).sum()) for e in edges},
    }


def edge_text(edge: float) -> str:
    """0.0, 0.8, 0.04: at least one decimal."""
    return f"{edge:.1f}" if abs(edge * 10 - round(edge * 10)) < 10 * ROUNDING else f"{edge:g}"


def margin_table(counts: dict[str, Any]) -> str:
    """The histogram and the thresholds as text."""
    histogram, kept = counts["histogram"], counts["kept_at"]
    edges = list(kept)
    largest = max(*histogram, 1)
    bins = [f"{low}-{high}" for low, high in pairwise(edges)]
    width = max(10, *(len(name) + 1 for name in bins))
    rows = [f"{'margin':<{width}}{'lists':>9}  {'':<{BAR}}  kept with this min_margin"]
    for name, low, number in zip(bins, edges[:-1], histogram, strict=True):
        bar = "#" * -(-number * BAR // largest)
        rows.append(f"{name:<{width}}{number:>9}  {bar:<{BAR}}  {low}: {kept[low]}")
    rows.append(f"{'':<{width + 11 + BAR}}  {edges[-1]}: {kept[edges[-1]]}")
    return "\n".join(rows)
