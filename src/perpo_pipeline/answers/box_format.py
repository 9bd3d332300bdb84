"""How one model family asks for a box and writes it: `BoxFormat`.

The families' own formats are in builtin_formats.py; formats.py finds one by its name. This module
imports no NumPy, because the settings are checked against it.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from perpo_pipeline.answers.placement import Placement

Box = tuple[float, float, float, float]

COORDINATES = ("x1", "y1", "x2", "y2")
CORNER_CELLS = ("first", "last")
POINT_GROUPS = ("x1", "y1")
EXPRESSION = "{expression}"
BOXES = "{boxes}"
# LLaVA's question, and the paper's (METHOD: 'The paper's recipes').
LLAVA_QUESTION = (
    "Please provide the bounding box coordinate of the region this sentence describes: {expression}"
)


@dataclass(frozen=True)
class BoxFormat:
    """How one model family writes a box; a user's own is named as `pkg.module:attribute`.

    `pattern` finds a box, with the named groups x1, y1, x2, y2; `template` writes one (`str.format`
    with these names). The frame is `scale` units wide and high, or as many as it has pixels if
    `scale` is None; coordinates are written with `decimals` decimals. `instruction` asks for the
    box, with `{expression}` for the description of the object. `frame` is the only frame in which
    the format makes sense, None if it makes sense in all of them. `no_target` is the answer that
    there is no such object: SFT writes it, and denials.py reads it.

    An answer of several boxes has `separator` between them and stands in `around`, at `{boxes}`; so
    does a single box.

    `point_template` writes a point (with the names x, y) in the same unit. `point_pattern` finds
    one, with the groups x1 and y1; with None, points are read as in all formats (reading.py).
    With `y_first` such points, and those of polygons, are [y, x].

    With `bins` a number is no coordinate but the index of the bin that holds it, from 0 to
    `scale` - 1: it is read as the bin's centre. With `cells` a box is written as its first and its
    last cell of a grid of `scale` x `scale` cells, counted row by row from 0; the groups and names
    are then `first` and `last` (see `corners_of_cells`).
    """

    name: str
    pattern: re.Pattern[str]
    template: str
    scale: float | None
    decimals: int = 0
    instruction: str = LLAVA_QUESTION
    frame: str | None = None
    no_target: str = "[]"
    point_template: str = "[{x}, {y}]"
    point_pattern: re.Pattern[str] | None = None
    bins: bool = False
    cells: bool = False
    y_first: bool = False
    around: str = BOXES
    separator: str = ", "

    def ask(self, expression: str) -> str:
        """The question for the box of what `expression` describes."""
        return self.instruction.replace(EXPRESSION, expression)

    def asked_for(self, question: str) -> str | None:
        """The expression in a question that `ask` made, None for any other text."""
        before, after = self.instruction.split(EXPRESSION)
        if not (question.startswith(before) and question.endswith(after)):
            return None
        return question.removeprefix(before).removesuffix(after)

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the numbers in `pattern` and `template`."""
        return CORNER_CELLS if self.cells else COORDINATES

    @property
    def bin_offset(self) -> float:
        """What is added to a written number to get its place, in units: half a bin, or nothing."""
        return 0.5 if self.bins else 0.0

    def numbers(self, match: re.Match[str]) -> tuple[float, ...]:
        """The numbers in a match of `pattern` as they are written; NaN if one is no number."""
        return numbers_of(match, self.groups)

    def in_units(self, written: "npt.NDArray[np.float64]") -> "npt.NDArray[np.float64]":
        """Numbers as they are written, `(..., 4)` or `(..., 2)` cells, as x1, y1, x2, y2 in units.

        NaN stays NaN.
        """
        if self.cells:
            return corners_of_cells(written, int(self.scale or 1))
        return written + self.bin_offset

    def write(self, box_xyxy_px: Box, placement: "Placement") -> str | None:
        """The answer that is one box, as `write_all` writes it."""
        return self.write_all([box_xyxy_px], placement)

    def write_all(self, boxes_xyxy_px: Sequence[Box], placement: "Placement") -> str | None:
        """The answer with these boxes in pixels of the original image; halves round to even.

        None if one reaches out of the frame by more than one written unit. Without boxes it is
        `no_target`.
        """
        if not boxes_xyxy_px:
            return self.no_target
        written = [self._write_one(box, placement) for box in boxes_xyxy_px]
        inside = [text for text in written if text is not None]
        if len(inside) < len(written):
            return None
        return self.around.replace(BOXES, self.separator.join(inside))

    def _write_one(self, box_xyxy_px: Box, placement: "Placement") -> str | None:
        found = self._inside(box_xyxy_px, placement)
        if found is None:
            return None
        values, sides = found
        if self.cells:
            first, last = _corner_cells(values, int(sides[0]))
            return self.template.format(first=first, last=last)
        pairs = zip(COORDINATES, values, sides, strict=True)
        return self.template.format(**{name: self._written(*at) for name, *at in pairs})

    def write_point(self, point_xy_px: tuple[float, float], placement: "Placement") -> str | None:
        """The text of a point in pixels of the original image, as `write` writes a box."""
        x, y = point_xy_px
        found = self._inside((x, y, x, y), placement)
        if found is None:
            return None
        values, sides = found
        x_written, y_written = map(self._written, values[:2], sides[:2])
        return self.point_template.format(x=x_written, y=y_written)

    def _inside(
        self, box_xyxy_px: Box, placement: "Placement"
    ) -> tuple[list[float], list[float]] | None:
        """A box in units, moved into the frame by one written unit at most, and the frame's sides.

        None for a box that reaches out by more.
        """
        import numpy as np

        step = 10.0**-self.decimals
        values = placement.to_units(np.array(box_xyxy_px, np.float64), self.scale).tolist()
        sides = [float(units) for units in placement.units(self.scale)] * 2
        pairs = list(zip(values, sides, strict=True))
        if not all(-step <= value <= side + step for value, side in pairs):
            return None
        return [min(max(value, 0.0), side) for value, side in pairs], sides

    def _written(self, value: float, side: float) -> str:
        if self.bins:
            return str(min(int(value), int(side) - 1))
        return f"{value:.{self.decimals}f}"

    def describe(self) -> dict[str, Any]:
        """Everything that decides how answers are read and written, for fingerprints.

        `frame` is left out: the settings hold the frame that is used. Fields that later versions
        added are there only where they are set, so that older fingerprints stay.
        """
        found: dict[str, Any] = {
            "pattern": self.pattern.pattern,
            "flags": self.pattern.flags,
            "template": self.template,
            "scale": self.scale,
            "decimals": self.decimals,
            "instruction": self.instruction,
            "no_target": self.no_target,
            "point_template": self.point_template,
        }
        if self.point_pattern is not None:
            found["point_pattern"] = self.point_pattern.pattern
            found["point_flags"] = self.point_pattern.flags
        added = {name: getattr(self, name) for name in _ADDED}
        return found | {
            name: value for name, value in added.items() if value != getattr(BoxFormat, name)
        }


_ADDED = ("bins", "cells", "y_first", "around", "separator")


def numbers_of(match: re.Match[str] | None, groups: Sequence[str]) -> tuple[float, ...]:
    """The numbers in these groups of a match; all NaN without a match or where one is no number."""
    try:
        return tuple(float(match[name]) for name in groups)  # type: ignore[index]
    except (TypeError, ValueError):  # a user's pattern: no such group in this match, or words
        return (math.nan,) * len(groups)


def corners_of_cells(cells: "npt.NDArray[np.float64]", side: int) -> "npt.NDArray[np.float64]":
    """The boxes of first and last cells, `(..., 2)`: x1, y1, x2, y2 in cells, `(..., 4)`.

    The grid has `side` x `side` cells, counted row by row from 0. A box reaches from the centre of
    its first cell to the centre of its last one; if both are in one row or in one column, from
    edge to edge. So does Kosmos-2 (`patch_index_to_coordinate` in transformers, which has it from
    the demo and the RefCOCO evaluation of microsoft/unilm). NaN where a cell is.
    """
    import numpy as np

    with np.errstate(invalid="ignore"):
        rows, columns = np.divmod(cells, side)
    first_x, last_x = columns[..., 0], columns[..., 1]
    first_y, last_y = rows[..., 0], rows[..., 1]
    is_line = (first_x == last_x) | (first_y == last_y)
    start, end = np.where(is_line, 0.0, 0.5), np.where(is_line, 1.0, 0.5)
    return np.stack([first_x + start, first_y + start, last_x + end, last_y + end], axis=-1)


def _corner_cells(values: Sequence[float], side: int) -> tuple[int, int]:
    """The first and last cell that a box x1, y1, x2, y2 (in cells) touches.

    As Kosmos-2 writes them: `coordinate_to_patch_index` in transformers. A box without a width or
    a height, which has no such cells, gets those at its place.
    """
    x1, y1, x2, y2 = values
    first_x, first_y = (min(math.floor(value), side - 1) for value in (x1, y1))
    last_x = max(math.ceil(x2) - 1, first_x)
    last_y = max(math.ceil(y2) - 1, first_y)
    return first_y * side + first_x, last_y * side + last_x
