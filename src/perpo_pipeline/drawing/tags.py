"""Where the labels of marks stand: at a corner of their mark, inside the image, not overlapping."""

from collections.abc import Sequence
from dataclasses import dataclass

from perpo_pipeline.drawing.marks import Mark

WIDTH_OF_LETTER = 0.64  # of the text's size, in a bold sans-serif
MARGIN, HEIGHT = 0.3, 1.35  # on both sides of the text, and of the whole tag; of the text's size


@dataclass(frozen=True)
class Tag:
    """A label and the rectangle that it fills, in pixels of the image."""

    mark: Mark
    x: float
    y: float
    width: float
    height: float

    def overlaps(self, other: "Tag") -> bool:
        """Whether the two share an area."""
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )


def place_tags(marks: Sequence[Mark], text_size: float, size: tuple[float, float]) -> list[Tag]:
    """The tags of the marks that have a label, for a text of this size in pixels of the image.

    Each takes the first of six places at its mark's corners at which it covers no earlier tag; the
    first of all if there is none.
    """
    placed: list[Tag] = []
    for mark in marks:
        if mark.label:
            choices = _choices(mark, text_size, size)
            free = (c for c in choices if not any(c.overlaps(other) for other in placed))
            placed.append(next(free, choices[0]))
    return placed


def _choices(mark: Mark, text_size: float, size: tuple[float, float]) -> list[Tag]:
    width = text_size * (WIDTH_OF_LETTER * len(mark.label) + 2 * MARGIN)
    height = text_size * HEIGHT
    x1, y1, x2, y2 = mark.bounds()
    corners = [(x1, y1 - height), (x2 - width, y1 - height)]  # above
    corners += [(x1, y2), (x2 - width, y2)]  # below
    corners += [(x1, y1), (x2 - width, y2 - height)]  # inside
    return [
        Tag(
            mark,
            min(max(x, 0.0), max(size[0] - width, 0.0)),
            min(max(y, 0.0), max(size[1] - height, 0.0)),
            width,
            height,
        )
        for x, y in corners
    ]
