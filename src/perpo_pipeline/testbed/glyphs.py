"""Characters of DejaVu Sans Mono as small masks, computed from the font's outlines.

Outlines in font units are the same in every release of FreeType, rendered pixels are not (hinting).
So only the outlines come from the library, and the same page has the same pixels everywhere.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUPERSAMPLING = 4
CURVE_STEPS = 6
ASCENT = 0.76  # in sizes: what a capital letter or a digit needs above the baseline
DESCENT = 0.16  # and a comma or a Q below it


@cache
def glyph_mask(character: str, size: float, advance_px: int) -> NDArray[np.int64]:
    """(height, advance): how much of each pixel the character covers, in 0..SUPERSAMPLING ** 2.

    size: pixels per em. The character stands in the middle of its cell; the baseline lies
    `baseline(size)` pixels below the cell's top.
    """
    height = baseline(size) + int(np.ceil(DESCENT * size))
    outline, em, advance = _outline(character)
    scale = size / em
    left = (advance_px - advance * scale) / 2
    xs = (np.arange(advance_px * SUPERSAMPLING) + 0.5) / SUPERSAMPLING - left
    ys = baseline(size) - (np.arange(height * SUPERSAMPLING) + 0.5) / SUPERSAMPLING
    inside = _winding(outline, xs / scale, ys / scale) != 0
    blocks = inside.reshape(height, SUPERSAMPLING, advance_px, SUPERSAMPLING)
    mask: NDArray[np.int64] = blocks.sum(axis=(1, 3), dtype=np.int64)
    mask.flags.writeable = False
    return mask


def baseline(size: float) -> int:
    """Pixels from the top of a cell to its baseline."""
    return int(np.ceil(ASCENT * size))


def _winding(
    edges: NDArray[np.float64], xs: NDArray[np.float64], ys: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Winding number (rows, columns) of closed outlines, edges (E, 4) as x1 y1 x2 y2."""
    x1, y1, x2, y2 = (edges[:, k, None] for k in range(4))
    up = (y1 <= ys) & (y2 > ys)
    down = (y2 <= ys) & (y1 > ys)
    rise = np.where(y1 == y2, 1.0, y2 - y1)
    crossing = x1 + (ys - y1) / rise * (x2 - x1)  # (E, rows): where an edge meets the row
    beyond = crossing[:, :, None] > xs
    turns = up.astype(np.int64) - down
    counted: NDArray[np.int64] = (turns[:, :, None] * beyond).sum(0)
    return counted


@cache
def _outline(character: str) -> tuple[NDArray[np.float64], int, int]:
    """Straight edges (E, 4) of a character in font units, units per em, and its advance."""
    from matplotlib.ft2font import LoadFlags

    font = _font()
    glyph = font.load_char(ord(character), flags=LoadFlags.NO_SCALE)
    vertices, codes = font.get_path()
    points = np.rint(vertices * 64)
    edges: list[list[float]] = []
    start = here = points[0]
    k = 0
    while k < len(codes):
        if codes[k] == 1:  # move
            start = here = points[k]
        elif codes[k] == 3:  # a quadratic curve: its control point, then its end
            for stop in _curve(here, points[k], points[k + 1]):
                edges.append([*here, *stop])
                here = stop
            k += 1
        else:  # a line, or the line back to the start
            stop = start if codes[k] == 79 else points[k]
            edges.append([*here, *stop])
            here = stop
        k += 1
    return np.array(edges), int(font.units_per_EM), int(glyph.horiAdvance)


def _curve(
    start: NDArray[np.float64], control: NDArray[np.float64], stop: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    steps = [k / CURVE_STEPS for k in range(1, CURVE_STEPS + 1)]
    return [(1 - t) * (1 - t) * start + 2 * (1 - t) * t * control + t * t * stop for t in steps]


@cache
def _font() -> Any:
    import matplotlib
    from matplotlib.ft2font import FT2Font

    return FT2Font(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"))
