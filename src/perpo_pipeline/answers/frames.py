"""Frames: which picture the numbers of an answer refer to.

- `full`: the original, un-padded image.
- `crop`: its centred square with the side of the short edge (what remains after CLIP's processor
  resized the shortest edge and cropped the centre).
- `pad`: the centred square with the side of the long edge (the image padded, as in the original
  LLaVA).
- `resized`: the whole image resized to a given size. It differs from prompt to prompt and is
  recorded with every answer (Qwen2.5-VL's pixels are those of the resized image: `smart_resize`).

placement.py computes where a frame is on an image. This module imports no NumPy.
"""

import math

from perpo_pipeline.errors import ConfigError, InputError

Size = tuple[int, int]

FRAMES = ("full", "crop", "pad", "resized")


def smart_resize(
    image_size: Size,
    *,
    factor: int = 28,
    min_pixels: int = 56 * 56,
    max_pixels: int = 28 * 28 * 1280,
) -> Size:
    """The (width, height) to which Qwen2-VL and Qwen2.5-VL resize an image before they read it.

    Both are multiples of `factor` near the original size, with `min_pixels` to `max_pixels` pixels
    in all. Raises InputError for an edge ratio above 200, as the models do. Source: `smart_resize`
    of Qwen's `qwen-vl-utils`, which takes and gives (height, width).
    """
    width, height = image_size
    check_size(image_size, "image_size")
    if max(image_size) / min(image_size) > 200:
        raise InputError(f"an image of {width}x{height} pixels is too narrow: edge ratio above 200")
    new_width, new_height = (round(edge / factor) * factor for edge in image_size)
    if new_width * new_height > max_pixels:
        ratio = math.sqrt(width * height / max_pixels)
        new_width, new_height = (
            max(factor, math.floor(edge / ratio / factor) * factor) for edge in image_size
        )
    elif new_width * new_height < min_pixels:
        ratio = math.sqrt(min_pixels / (width * height))
        new_width, new_height = (math.ceil(edge * ratio / factor) * factor for edge in image_size)
    return new_width, new_height


def check_size(size: Size, name: str) -> None:
    """Raise ConfigError for a width or height below 1; `name` is the argument."""
    if min(size) < 1:
        raise ConfigError(f"{name} is {size}; width and height must be 1 or more")
