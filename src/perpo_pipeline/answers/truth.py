"""Checks of a row's truth and fields: boxes, polygons, texts. Boxes are xyxy in pixels.

A coordinate up to half a pixel outside the image is annotation rounding and is kept as it is.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from perpo_pipeline.json_files import RowFault

BOX_SLACK_PX = 0.5
TINY_IMAGE_PX = 2  # longest side of an image in which a box from 0 to 1 may mean pixels


def truth_fault(
    box: Any, boxes: Any, polygon: Any, width: int, height: int, point: Any = None
) -> str | None:
    """What is wrong with a row's `gt_box`, `gt_boxes`, `gt_polygon` or `gt_point` (None: absent).

    An empty `gt_boxes` is the truth that there is no target; then it is the only truth.
    """
    if box is not None and (fault := box_fault(box, width, height)):
        return fault
    if boxes is not None:
        if not isinstance(boxes, list | tuple):
            return f"gt_boxes is not a list of boxes: {boxes!r}"
        others = {"gt_box": box, "gt_polygon": polygon, "gt_point": point}
        given = [name for name, value in others.items() if value is not None]
        if not boxes and given:
            return f"gt_boxes is empty, which says that there is no target, beside a {given[0]}"
        for index, one in enumerate(boxes):
            if fault := box_fault(one, width, height, name=f"gt_boxes[{index}]"):
                return fault
    if polygon is not None and (fault := polygon_fault(polygon, width, height)):
        return fault
    return None if point is None else point_fault(point, width, height)


def point_fault(point: Any, width: int, height: int) -> str | None:
    """What is wrong with a ground-truth point x, y (pixels), or None."""
    if not are_numbers(point, 2):
        return f"gt_point is not two finite numbers: {point!r}"
    return _outside("gt_point", point, width, height)


def box_fault(box: Any, width: int, height: int, *, name: str = "gt_box") -> str | None:
    """What is wrong with a ground-truth box xyxy (pixels), or None."""
    if not are_numbers(box, 4):
        return f"{name} is not four finite numbers: {box!r}"
    x1, y1, x2, y2 = box
    if not (x1 < x2 and y1 < y2):
        return f"{name} is inverted or empty: {box!r} (expected x1 < x2 and y1 < y2)"
    return _outside(name, box, width, height) or _tiny(name, box, width, height)


def _tiny(name: str, box: Any, width: int, height: int) -> str | None:
    """The fault of a box that no annotator draws; without numbers, so that it is listed once."""
    if min(width, height) <= TINY_IMAGE_PX:
        return None
    if max(box) <= 1:
        return f"{name} is within the first pixel: it looks normalised; give pixels"
    x1, y1, x2, y2 = box
    return f"{name} is smaller than a pixel" if (x2 - x1) * (y2 - y1) < 1 else None


def is_within_one(flat: Any) -> bool:
    """Whether a box or polygon, as a flat list, holds only numbers from 0 to 1."""
    is_list = isinstance(flat, list | tuple) and len(flat) > 0
    return is_list and all(_is_finite_number(value) and 0 <= value <= 1 for value in flat)


def polygon_fault(polygon: Any, width: int, height: int) -> str | None:
    """What is wrong with a polygon x1, y1, x2, y2, ... (pixels), or None.

    It needs three points or more, an area, and a border that does not cross itself (by Shapely).
    """
    name = "gt_polygon"
    if not isinstance(polygon, list | tuple) or len(polygon) < 6 or len(polygon) % 2:
        return f"{name} is not a flat list of three or more points x, y: {polygon!r}"
    if not are_numbers(polygon, len(polygon)):
        return f"{name} is not all finite numbers: {polygon!r}"
    if fault := _outside(name, polygon, width, height):
        return fault
    import shapely

    shape = shapely.Polygon([(float(x), float(y)) for x, y in _points(polygon)])
    if not shape.area > 0:
        return f"{name} {polygon!r} has no area"
    return None if shape.is_valid else f"{name} {polygon!r}: {shapely.is_valid_reason(shape)}"


def _points(flat: Any) -> Any:
    return zip(flat[::2], flat[1::2], strict=True)


def _outside(name: str, flat: Any, width: int, height: int) -> str | None:
    for x, y in _points(flat):
        inside = (
            -BOX_SLACK_PX <= x <= width + BOX_SLACK_PX
            and -BOX_SLACK_PX <= y <= height + BOX_SLACK_PX
        )
        if not inside:
            return f"{name} {flat!r} is outside the image of {width}x{height} pixels"
    return None


def are_numbers(values: Any, count: int) -> bool:
    """Whether `values` is a list of `count` finite numbers."""
    is_list = isinstance(values, list | tuple) and len(values) == count
    return is_list and all(_is_finite_number(value) for value in values)


def _is_finite_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def xyxy_from_xywh(box: Any) -> list[float]:
    """x, y, width, height -> x1, y1, x2, y2, in the same unit; raises `RowFault`."""
    if not are_numbers(box, 4):
        raise RowFault(f"`bbox` is not four finite numbers: {box!r}")
    x, y, width, height = box
    return [x, y, x + width, y + height]


def truth_in_words(prompt: Mapping[str, Any]) -> str:
    """The truth of a row of the prompts in words: its text, or its coordinates in pixels."""
    parts = [] if prompt["gt_text"] is None else [prompt["gt_text"]]
    if prompt["gt_boxes"] is not None:
        parts += [_numbers(box) for box in prompt["gt_boxes"]] or ["nothing fits"]
    single = (prompt[name] for name in ("gt_box", "gt_point"))
    parts += [_numbers(values) for values in single if values is not None]
    if prompt["gt_polygon"] is not None:
        parts.append(f"outline of {len(prompt['gt_polygon']) // 2} points")
    return ", ".join(dict.fromkeys(parts))


def _numbers(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"
