"""What is drawn on an image: boxes, outlines and points, and how each kind looks.

Kinds differ in colour and in dashes, so that they differ without colour, too: the truth is
solid, an answer before training dashed, an answer dotted. Coordinates are pixels of the image; what
reaches beyond it is cut off at its edge.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Point = tuple[float, float]
Dash = tuple[float, ...]

SOLID: Dash = ()
DASHED: Dash = (8, 5)
DOTTED: Dash = (0.1, 5)
"""Lengths of dash and gap in pixels of the screen; the ends are round, so short ones are dots."""


@dataclass(frozen=True)
class Style:
    """How one kind of mark looks: its colour, as #rrggbb, its dashes and the width of its line."""

    colour: str
    dash: Dash = SOLID
    line_px: float = 3.0


# Apart for people with any kind of colour blindness, too (tests/drawing/test_marks.py).
TRUTH = Style("#0f6030")
BEFORE = Style("#d0601a", DASHED)
ANSWER = Style("#1d5fd1", DOTTED)


@dataclass(frozen=True)
class Mark:
    """One box, outline or point: its corners x, y in pixels of the image, and a short label."""

    kind: Literal["box", "outline", "point"]
    points: tuple[Point, ...]
    style: Style
    label: str = ""

    def bounds(self) -> tuple[float, float, float, float]:
        """The smallest box xyxy around the mark."""
        xs, ys = zip(*self.points, strict=True)
        return min(xs), min(ys), max(xs), max(ys)


def box(xyxy: Sequence[float], style: Style, label: str = "") -> Mark:
    """A box xyxy; one whose corners are swapped is drawn as the same rectangle."""
    x1, y1, x2, y2 = xyxy
    return Mark("box", ((x1, y1), (x2, y1), (x2, y2), (x1, y2)), style, label)


def outline(flat: Sequence[float], style: Style, label: str = "") -> Mark:
    """A polygon x1, y1, x2, y2, ...."""
    return Mark("outline", _points(flat), style, label)


def point(xy: Sequence[float], style: Style, label: str = "") -> Mark:
    """A point x, y."""
    return Mark("point", _points(xy), style, label)


def truth_marks(prompt: Mapping[str, Any], label: str = "truth") -> list[Mark]:
    """The true boxes, outline and point of a row of the prompts; none for a true text."""
    marks = [box(one, TRUTH, label) for one in prompt["gt_boxes"] or ()]
    single = prompt["gt_box"]
    if single is not None and single not in (prompt["gt_boxes"] or ()):
        marks.insert(0, box(single, TRUTH, label))
    if prompt["gt_polygon"] is not None:
        marks.append(outline(prompt["gt_polygon"], TRUTH, label))
    if prompt["gt_point"] is not None:
        marks.append(point(prompt["gt_point"], TRUTH, label))
    return marks


def describe(marks: Iterable[Mark]) -> str:
    """The marks in words, for readers who do not see the picture."""
    return "; ".join(map(_describe_one, marks))


def _describe_one(mark: Mark) -> str:
    what = f"{mark.label}: {mark.kind}" if mark.label else mark.kind
    x1, y1, x2, y2 = (f"{value:.0f}" for value in mark.bounds())
    if mark.kind == "point":
        return f"{what} at x {x1}, y {y1}"
    return f"{what} from x {x1}, y {y1} to x {x2}, y {y2}"


def _points(flat: Sequence[float]) -> tuple[Point, ...]:
    return tuple(zip(flat[::2], flat[1::2], strict=True))
