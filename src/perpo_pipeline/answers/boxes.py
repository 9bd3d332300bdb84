"""Reads and writes boxes, one text at a time.

Two settings decide what the numbers of a box mean, and neither is ever guessed from the text: the
*format* (formats.py) and the *frame* (frames.py).

What counts as parsed, for every format: the *first* place in the text that has the format's shape
with plain decimal numbers (or its location tokens) is taken (or the last one, with `which`), others
are ignored.
Nothing is clamped, swapped or rescaled: a box that reaches out of its frame is measured as it
stands, as the evaluation scripts of the model families do. Only a box more than a thousand million
pixels away is unparsed. An inverted box (x1 > x2 or y1 > y2) is parsed and returned as it was
written: the model did write a box, whose overlap with anything is 0.
"""

import math
import re
from collections.abc import Sequence

import numpy as np

from perpo_pipeline.answers.formats import (
    BOX_FORMATS,
    REFERRING_PROMPT,
    Box,
    BoxFormat,
    get_box_format,
)
from perpo_pipeline.answers.frames import FRAMES, Size
from perpo_pipeline.answers.placement import Placement, place_frame
from perpo_pipeline.answers.settings import Which
from perpo_pipeline.errors import InputError

__all__ = [
    "BOX_FORMATS",
    "FRAMES",
    "REFERRING_PROMPT",
    "Box",
    "BoxFormat",
    "Size",
    "clip_to_frame",
    "find_box",
    "format_box",
    "format_boxes",
    "get_box_format",
    "parse_box",
    "parse_boxes",
]


def find_box(rule: BoxFormat, text: str, which: Which) -> re.Match[str] | None:
    """The first or the last match of a format's pattern in one text."""
    if which == "first":
        return rule.pattern.search(text)
    return max(rule.pattern.finditer(text), key=lambda match: match.start(), default=None)


def parse_box(
    text: str,
    box_format: str,
    *,
    frame: str,
    image_size: Size,
    resized: Size | None = None,
    which: Which = "first",
) -> Box | None:
    """Read the first (or last) box in a text, xyxy in pixels of the original; None if unparsed.

    `image_size` and `resized` are (width, height) in pixels; `resized` is needed by the frame
    `resized` and used by no other. What counts as parsed: see the module. Raises ConfigError for
    an unknown format or frame, a missing `resized` and sizes below 1.
    """
    rule, placement = get_box_format(box_format), place_frame(frame, image_size, resized)
    match = find_box(rule, text, which)
    return None if match is None else _to_image_px(rule, placement, rule.numbers(match))


def parse_boxes(
    text: str, box_format: str, *, frame: str, image_size: Size, resized: Size | None = None
) -> list[Box | None]:
    """Read every box in a text, in order; None for a box that `parse_box` would not parse.

    Arguments, errors and what counts as parsed as in `parse_box`.
    """
    rule, placement = get_box_format(box_format), place_frame(frame, image_size, resized)
    matches = rule.pattern.finditer(text)
    return [_to_image_px(rule, placement, rule.numbers(match)) for match in matches]


def format_box(
    box_xyxy_px: Box, box_format: str, *, frame: str, image_size: Size, resized: Size | None = None
) -> str:
    """Write a box given in pixels of the original image: the inverse of `parse_box`, rounded.

    Arguments and errors as in `format_boxes`.
    """
    return format_boxes(
        [box_xyxy_px], box_format, frame=frame, image_size=image_size, resized=resized
    )


def format_boxes(
    boxes_xyxy_px: Sequence[Box],
    box_format: str,
    *,
    frame: str,
    image_size: Size,
    resized: Size | None = None,
) -> str:
    """Write an answer of several boxes, as `parse_boxes` reads it; without boxes, `no_target`.

    Halves round to even. Arguments as in `parse_box`. Raises InputError for a box that is
    inverted, not finite, or reaches out of the frame by more than one written unit (pixels beyond
    a centre crop cannot be written down: `clip_to_frame` first), else as `parse_box`.
    """
    rule, placement = get_box_format(box_format), place_frame(frame, image_size, resized)
    for box in boxes_xyxy_px:
        _check_box(box)
    written = rule.write_all(boxes_xyxy_px, placement)
    if written is None:
        outside = next(box for box in boxes_xyxy_px if rule.write(box, placement) is None)
        raise InputError(
            f"the box {list(outside)} reaches out of the frame {frame!r} "
            f"of an image of {image_size[0]}x{image_size[1]} pixels",
            fix="check the box, or clip it to the frame before writing it",
        )
    return written


def clip_to_frame(
    box_xyxy_px: Box, *, frame: str, image_size: Size, resized: Size | None = None
) -> Box | None:
    """The part of a box that is inside the frame, in pixels of the original image; None if empty.

    Only `crop` cuts anything off a box inside the image. Arguments and errors as in `format_box`.
    """
    placement = place_frame(frame, image_size, resized)
    _check_box(box_xyxy_px)
    left, top = placement.offset.tolist()
    right, bottom = (placement.offset + placement.extent).tolist()
    x1, y1, x2, y2 = box_xyxy_px
    clipped = (max(x1, left), max(y1, top), min(x2, right), min(y2, bottom))
    is_visible = clipped[0] < clipped[2] and clipped[1] < clipped[3]
    return clipped if is_visible else None


def _to_image_px(rule: BoxFormat, placement: Placement, written: tuple[float, ...]) -> Box | None:
    """Written numbers as a box in pixels of the original image; None if it is on no image."""
    found = placement.to_image_px(rule.in_units(np.array(written)), rule.scale).tolist()
    x1, y1, x2, y2 = found
    return None if math.isnan(x1) else (x1, y1, x2, y2)


def _check_box(box_xyxy_px: Box) -> None:
    x1, y1, x2, y2 = box_xyxy_px
    if not (all(map(math.isfinite, box_xyxy_px)) and x1 <= x2 and y1 <= y2):
        raise InputError(
            f"{list(box_xyxy_px)} is not a box: x1 <= x2 and y1 <= y2 must hold",
            fix="give boxes as x1, y1, x2, y2 in pixels of the original image",
        )
