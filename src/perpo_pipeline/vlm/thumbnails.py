"""The other images of a prompt with several, small: pages show them beside that of its boxes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perpo_pipeline.drawing.overlay import data_uri
from perpo_pipeline.store.prompt_images import box_place, num_images
from perpo_pipeline.vlm.inputs import prompt_images

SIDE_PX = 160


@dataclass(frozen=True)
class Thumbnail:
    """One image: what it is in words, for `alt`, and a data URI."""

    alt: str
    source: str


def thumbnails(row: Mapping[str, Any]) -> list[Thumbnail]:
    """All images of a prompt except that of its boxes, in their order; none for one image.

    Raises as `prompt_images` does.
    """
    number = num_images(row)
    if number == 1:
        return []
    return [
        Thumbnail(f"picture {at + 1} of {number}", data_uri(image, SIDE_PX))
        for at, image in enumerate(prompt_images(row))
        if at != box_place(row)
    ]
