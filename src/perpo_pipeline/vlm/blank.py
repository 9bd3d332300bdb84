"""Prompts with a blank image in the place of their own."""

import functools
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from perpo_pipeline.vlm.images import image_sha256

if TYPE_CHECKING:
    from perpo_pipeline.vlm.models import Vlm

Row = dict[str, Any]


def mean_rgb(vlm: "Vlm") -> tuple[float, float, float]:
    """The mean colour of the model's image processor, each in [0, 1]."""
    red, green, blue = vlm.processor.image_processor.image_mean
    return red, green, blue


def with_blank_images(
    rows: Sequence[Mapping[str, Any]], colour: tuple[float, float, float]
) -> list[Row]:
    """Each prompt with an image in one colour, as large as its own image; of several, each.

    With the model's `mean_rgb` the normalised pixels are close to zero everywhere.
    """
    return [{**row, **_blank(row, colour)} for row in rows]


def _blank(row: Mapping[str, Any], colour: tuple[float, float, float]) -> Row:
    data, sha256 = _png(row["width"], row["height"], colour)
    shown: Row = {
        "image": {"bytes": data, "path": None},
        "image_sha256": sha256,
        "image_prompt_id": "blank",
    }
    if facts := row.get("more_image_facts"):
        pngs = [_png(fact["width"], fact["height"], colour) for fact in facts]
        shown["more_images"] = [{"bytes": png, "path": None} for png, _ in pngs]
        shown["more_image_facts"] = [
            {**fact, "sha256": of_png} for fact, (_, of_png) in zip(facts, pngs, strict=True)
        ]
    return shown


@functools.lru_cache(maxsize=256)  # prompts share sizes, and a photo's takes some milliseconds
def _png(width: int, height: int, colour: tuple[float, float, float]) -> tuple[bytes, str]:
    red, green, blue = (int(channel * 255) for channel in colour)
    png = io.BytesIO()
    Image.new("RGB", (width, height), (red, green, blue)).save(png, format="PNG")
    return png.getvalue(), image_sha256(png.getvalue())
