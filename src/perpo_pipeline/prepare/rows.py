"""What every source shares: keys and checks of a prompt's row."""

import hashlib
import math
from typing import Any

from perpo_pipeline.boxes import BOX_FORMATS

REFERRING_PROMPT = BOX_FORMATS["llava"].instruction
"""The paper's grounding instruction (METHOD: 'The paper's recipes')."""
BOX_SLACK_PX = 0.5


def prompt_id(dataset: str, split: str, source_row: str) -> str:
    """Stable key of a prompt: 16 hex digits of the hash of where it came from."""
    key = "\x1f".join((dataset, split, source_row))
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def box_fault(box: Any, width: int, height: int) -> str | None:
    """What is wrong with a ground-truth box xyxy (pixels), or None.

    Half a pixel outside the image is annotation rounding and is accepted as it is.
    """
    numbers = isinstance(box, list | tuple) and len(box) == 4
    if not numbers or not all(_is_finite_number(v) for v in box):
        return f"gt_box is not four finite numbers: {box!r}"
    x1, y1, x2, y2 = box
    if not (x1 < x2 and y1 < y2):
        return f"gt_box is inverted or empty: {box!r} (expected x1 < x2 and y1 < y2)"
    if min(x1, y1) < -BOX_SLACK_PX or x2 > width + BOX_SLACK_PX or y2 > height + BOX_SLACK_PX:
        return f"gt_box {box!r} lies outside the image of {width}x{height} pixels"
    return None


def _is_finite_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
