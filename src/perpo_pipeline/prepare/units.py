"""The unit and the order of a dataset's boxes: xyxy in pixels, unless its settings say otherwise.

Two mistakes concern a whole file, so they are one question to the user and not a fault of each row:
boxes from 0 to 1, and boxes in thousandths of the image, as models of the Qwen and InternVL
families write them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from perpo_pipeline.answers.truth import (
    BOX_SLACK_PX,
    TINY_IMAGE_PX,
    are_numbers,
    is_within_one,
)
from perpo_pipeline.errors import InputError

Unit = Literal["px", "norm", "thousandths"]
Order = Literal["xyxy", "xywh", "cxcywh"]
PARTS: Mapping[Unit, float] = {"thousandths": 1000.0, "norm": 1.0}
ROUNDING = 1.0
LEAST_ODDS, ODDS_OUTSIDE = 20.0, 10.0
LEAST_OUTSIDE, LEAST_SHARE_OUTSIDE = 3, 0.1


@dataclass(frozen=True, slots=True)
class Shape:
    """A box, polygon or point as its file has it, x, y, ..., and its image's size in pixels."""

    place: str
    flat: Any
    width: int
    height: int

    @property
    def far(self) -> tuple[float, float]:
        """The largest x and the largest y."""
        return max(self.flat[::2]), max(self.flat[1::2])

    @property
    def is_outside(self) -> bool:
        x, y = self.far
        return x > self.width + BOX_SLACK_PX or y > self.height + BOX_SLACK_PX

    def __str__(self) -> str:
        return f"{self.place}, {list(self.flat)} in an image of {self.width} x {self.height}"


def refuse_other_units(
    shapes: Sequence[Shape],
    unit: Unit | None,
    *,
    where: str | None,
    setting: str,
    or_else: str | None = None,
) -> None:
    """Raise `InputError` if all boxes look like shares of their images, though none was declared.

    `setting` is the name of the setting that declares the unit; None as the unit asks. `or_else` is
    what speaks for another order of the numbers, in pixels.
    """
    if unit in PARTS:
        return
    large = [shape for shape in shapes if min(shape.width, shape.height) > TINY_IMAGE_PX]
    if len(large) > 1 and all(is_within_one(shape.flat) for shape in large):
        declare = f", or set {setting}: norm" if unit is None else ""
        raise InputError(
            f"all {len(large)} boxes are within 0-1: they look normalised; give pixels",
            where=where,
            fix=f"multiply x by the image's width, and y by its height{declare}",
        )
    whole = [shape for shape in shapes if _is_flat(shape.flat)]
    if unit is None and (doubt := looks_like_thousandths(whole)):
        raise InputError(
            f"are the true boxes in thousandths of the image? {doubt}"
            + (f"\n  or are they in another order? {or_else}" if or_else else ""),
            where=where,
            fix=f"if so, set {setting}: thousandths, which converts them; if they are pixels, set "
            f"{setting}: px (in the run's file or with --set)",
        )


def looks_like_thousandths(shapes: Sequence[Shape]) -> str | None:
    """What speaks for boxes in thousandths of the image where pixels are expected, or None.

    Nothing does unless all coordinates are from 0 to 1000 (or 1 beyond: annotations are rounded).
    Then one of two things:

    - Boxes lie outside their images: three or more, and a tenth of all or more.
    - Chance hardly explains that none reaches beyond 1000. The far corners of boxes in pixels are
      at most (width, height), those in thousandths at most (1000, 1000). If they are spread
      evenly, a box inside its image has the odds of width / 1000 x height / 1000 to be in
      thousandths. One outside counts as 10, because in pixels it would be a bad row. The product
      over all boxes must be 20 or more: 5 boxes on images of 1920 x 1080, never on images of
      640 x 480 or 1280 x 720 that hold their boxes.
    """
    low, high = -ROUNDING, 1000 + ROUNDING
    if not all(low <= value <= high for shape in shapes for value in shape.flat):
        return None
    outside = [shape for shape in shapes if shape.is_outside]
    are_many = len(outside) >= max(LEAST_OUTSIDE, LEAST_SHARE_OUTSIDE * len(shapes))
    if not shapes or not (are_many or _are_odds_high(shapes)):
        return None
    if outside:
        return (
            f"{len(outside)} of {len(shapes)} boxes reach beyond their images, but none beyond "
            f"1000, for example {outside[0]}"
        )
    return (
        f"none of the {len(shapes)} boxes reaches beyond 1000, though images are larger, "
        f"for example {max(shapes, key=lambda shape: shape.width * shape.height)}"
    )


def _is_flat(flat: Any) -> bool:
    """Whether it is x, y, x, y, ... in finite numbers: a point, a box or a polygon."""
    return isinstance(flat, list | tuple) and len(flat) >= 2 and are_numbers(flat, len(flat))


def _are_odds_high(shapes: Sequence[Shape]) -> bool:
    odds = (
        ODDS_OUTSIDE if shape.is_outside else shape.width * shape.height / 1e6 for shape in shapes
    )
    logs = map(math.log, odds)
    return math.fsum(logs) >= math.log(LEAST_ODDS)


def in_pixels(flat: Any, unit: Unit | None, width: int, height: int) -> Any:
    """Coordinates x, y, x, y, ... of the unit in pixels; unchanged if they are not numbers."""
    if unit is None or unit not in PARTS or not _is_flat(flat):
        return flat
    sides = (width, height)
    return [float(v) * sides[i % 2] / PARTS[unit] for i, v in enumerate(flat)]


def as_xyxy(box: Any, order: Order) -> Any:
    """A box of that order as x1, y1, x2, y2 in the same unit; not four numbers stay as they are."""
    if order == "xyxy" or not are_numbers(box, 4):
        return box
    x, y, width, height = box
    if order == "cxcywh":
        x, y = x - width / 2, y - height / 2
    return [x, y, x + width, y + height]
