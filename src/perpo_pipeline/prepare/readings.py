"""Whether true boxes would make more sense if their four numbers stood in another order.

Under the right order nearly every box is possible: it has a width and a height, and lies inside its
image. Under a wrong one most are not, because widths are rarely larger than x, and a corner plus a
corner soon leaves the image. Where all boxes are possible as they are read, numbers cannot show
that the order is wrong: only the pictures of `perpo prepare --preview` can.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from perpo_pipeline.answers.truth import BOX_SLACK_PX
from perpo_pipeline.prepare.units import PARTS, Order, Unit

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

ORDERS = {
    "xyxy": "x1, y1, x2, y2",
    "xywh": "x, y, width, height",
    "cxcywh": "centre x, centre y, width, height",
    "yxyx": "y1, x1, y2, x2",
    "yxhw": "y, x, height, width",
}
# Another order is named if two boxes or more, and one in twenty or ten, are impossible, and it
# leaves a tenth of them or fewer.
LEAST_IMPOSSIBLE, SHARE_IMPOSSIBLE, MANY_IMPOSSIBLE, LEFT_BY_BETTER = 2, 0.05, 10, 0.1
_SETTINGS = get_args(Order)  # what prepare.SPLIT.box may be


@dataclass(frozen=True)
class Doubt:
    """Why another order explains the boxes better: figures, and the order if only one does."""

    figures: str
    order: str | None

    def sentence(self, split: str, settings: Collection[str]) -> str:
        """The figures and what to do; `settings` are the names that the split's source has."""
        if self.order in _SETTINGS and "box" in settings:
            return f"{self.figures}: if that is right, set prepare.{split}.box: {self.order}"
        return f"{self.figures}: if that is right, rewrite the boxes as x1, y1, x2, y2"


def doubt_boxes(
    boxes: Sequence[Any], sizes: Sequence[Any], order: str, unit: Unit | None
) -> Doubt | None:
    """What speaks for another order of true boxes, or None.

    `boxes` are four numbers each as their file has them, `sizes` are (width, height) in pixels of
    the image of each; `order` and `unit` are how they are read now.
    """
    raw = np.asarray(boxes, np.float64).reshape(-1, 4)
    size = np.asarray(sizes, np.float64).reshape(-1, 2)
    now = to_xyxy_px(raw, size, order, unit)
    inverted, outside = is_inverted(now), is_outside(now, size)
    bad = int((inverted | outside).sum())
    if bad < max(LEAST_IMPOSSIBLE, min(SHARE_IMPOSSIBLE * len(raw), MANY_IMPOSSIBLE)):
        return None
    left = {other: _count_impossible(raw, size, other, unit) for other in ORDERS}
    fewest = min(left.values())
    if fewest > LEFT_BY_BETTER * bad:
        return None
    better = [other for other, count in left.items() if count == fewest]
    if not all(map(_is_swapped, better)):  # square images do not show which of the two is right
        better = [other for other in better if not _is_swapped(other)]
    named = " or ".join(f"{other} ({ORDERS[other]})" for other in better)
    rest = "none is" if not fewest else f"{fewest:,} are"
    return Doubt(
        f"read as {order}, {bad:,} of {len(raw):,} true boxes are impossible "
        f"({int(inverted.sum()):,} without width or height, {int((outside & ~inverted).sum()):,} "
        f"beyond their image); read as {named}, {rest}",
        better[0] if len(better) == 1 else None,
    )


def to_xyxy_px(raw: Floats, sizes: Floats, order: str, unit: Unit | None) -> Floats:
    """Boxes `(n, 4)` of an order and a unit as xyxy in pixels; `sizes` `(n, 2)` of their images."""
    a, b, c, d = raw.T
    if _is_swapped(order):
        a, b, c, d = b, a, d, c
    if order in ("xywh", "yxhw"):
        c, d = a + c, b + d
    elif order == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    found = np.column_stack([a, b, c, d])
    parts = None if unit is None else PARTS.get(unit)
    with np.errstate(over="ignore"):  # what is too large is beyond its image, too
        return found if parts is None else found * np.tile(sizes, 2) / parts


def is_inverted(xyxy: Floats) -> Mask:
    """Which boxes have no width or no height."""
    return np.asarray((xyxy[:, 0] >= xyxy[:, 2]) | (xyxy[:, 1] >= xyxy[:, 3]))


def is_outside(xyxy: Floats, sizes: Floats) -> Mask:
    """Which boxes reach beyond their image by more than the rounding of annotations."""
    beyond = (xyxy[:, 2:] > sizes + BOX_SLACK_PX) | (xyxy[:, :2] < -BOX_SLACK_PX)
    return np.asarray(beyond.any(axis=1))


def _count_impossible(raw: Floats, sizes: Floats, order: str, unit: Unit | None) -> int:
    xyxy = to_xyxy_px(raw, sizes, order, unit)
    return int((is_inverted(xyxy) | is_outside(xyxy, sizes)).sum())


def _is_swapped(order: str) -> bool:
    return order.startswith("y")
