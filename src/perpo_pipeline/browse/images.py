"""The images of prompts, found by the prompt's key alone and encoded anew for the page."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.schemas import PROMPTS
from perpo_pipeline.vlm.inputs import prompt_image

SIZES = {"thumb": 96, "page": 1400, "full": 4096}
"""The longest side of an image by the name of its size, in pixels."""
EXACT_PX = 640
"""An image of no longer side is sent as PNG, without loss."""
IMAGE_COLUMNS = PROMPTS.pick("prompt_id", "place", "image", "image_sha256")
MORE, FACTS = "more_images", "more_image_facts"
"""The columns of a prompt's images beside that of the boxes, where the schema has them."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Encoded:
    """An image as a browser takes it: its bytes and their media type."""

    data: bytes
    media_type: str


@dataclass(frozen=True)
class Lost:
    """Why an image cannot be shown; a page has it in the picture's place."""

    why: str


def read_image(prompts: Version, at: int, which: int = 0) -> Image.Image | None:
    """An image of the prompt in row `at`, RGB: 0 is the one that boxes refer to, then the others.

    None if the prompt has no such image. Raises `PerpoError` if its file is missing or changed.
    """
    if which and MORE not in PROMPTS.columns.names:
        return None
    columns = [*IMAGE_COLUMNS, *([MORE, FACTS] if which else [])]
    (row,) = prompts.rows(range(at, at + 1), columns).to_pylist()
    if which == 0:
        return prompt_image(row)
    if which > len(row[MORE] or ()):
        return None
    other, facts = row[MORE][which - 1], row[FACTS][which - 1]
    alone = {MORE: None, FACTS: None}  # an error names its file, not its place among the images
    return prompt_image({**row, **alone, "image": other, "image_sha256": facts["sha256"]})


def encode(image: Image.Image, longest_side_px: int) -> Encoded:
    """An image of at most this side: small ones as exact PNG, others as JPEG."""
    if max(image.size) > longest_side_px:
        image = image.copy()
        image.thumbnail((longest_side_px, longest_side_px), Image.Resampling.LANCZOS)
    sink, is_exact = io.BytesIO(), max(image.size) <= EXACT_PX
    if is_exact:
        image.save(sink, format="PNG")
    else:
        image.save(sink, format="JPEG", quality=88)
    return Encoded(sink.getvalue(), "image/png" if is_exact else "image/jpeg")
