"""Where a frame is on an image, and what written coordinates are in pixels of that image.

One `Placement` holds the frame on one image or on many, so that both are computed alike.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from perpo_pipeline.answers.frames import FRAMES, Size, check_size
from perpo_pipeline.errors import ConfigError

Floats = npt.NDArray[np.float64]

LARGEST_PX = 1e9
"""What is further away than this is no place on an image; areas stay finite within it."""


@dataclass(frozen=True)
class Placement:
    """Where a frame is on one original image, `(2,)`, or on n images, `(n, 2)`: x and y.

    `offset` and `extent` are pixels of the original image, `pixels` counts the frame's own pixels.
    """

    offset: Floats
    extent: Floats
    pixels: Floats

    def units(self, scale: float | None) -> Any:
        """How many units are across the frame: `scale` of them, or its pixels where that is None.

        The shape is `(2,)`, or `(n, 1, 2)` for n images.
        """
        if scale is not None:
            return np.array([scale, scale])
        return self.pixels if self.pixels.ndim == 1 else self.pixels[:, None]

    def to_image_px(self, values: Floats, scale: float | None) -> Floats:
        """Written coordinates x, y, ... as pixels of the original image, in the same shape.

        `values` is `(2k,)`, or `(n, 2k)` for n images. What reaches out of the frame stays as it
        is. A row is NaN where one of its coordinates is, or is more than `LARGEST_PX` away.
        """
        points = self._as_points(values)
        with np.errstate(all="ignore"):
            fractions = points / self.units(scale)
            found = self._per_point(self.offset) + fractions * self._per_point(self.extent)
        is_place = (np.abs(found) <= LARGEST_PX).all(axis=(-2, -1), keepdims=True)
        return np.where(is_place, found, np.nan).reshape(values.shape)

    def reach(self, values_px: Floats, scale: float | None) -> Floats:
        """How far points `(n, 2k)` in pixels of the original image go, `(n, 2)`.

        First how far they reach out of the frame: the largest distance of a coordinate beyond its
        edge, as a share of the frame's extent, 0 inside. Then the largest coordinate, in the units
        in which it was written. NaN where a coordinate is.
        """
        with np.errstate(invalid="ignore"):
            points = self._as_points(values_px) - self._per_point(self.offset)
            fractions = points / self._per_point(self.extent)
            largest, smallest = fractions.max(axis=-2), fractions.min(axis=-2)
            beyond = np.maximum(largest - 1.0, -smallest).max(axis=-1)
            units = (largest * self.units(scale).reshape(-1, 2)).max(axis=-1)
        return np.column_stack([np.maximum(beyond, 0.0), units])

    def to_units(self, values: Floats, scale: float | None) -> Floats:
        """Pixels of the original image as coordinates to write: the inverse of `to_image_px`."""
        fractions = (self._as_points(values) - self._per_point(self.offset)) / self._per_point(
            self.extent
        )
        return np.asarray(fractions * self.units(scale)).reshape(values.shape)

    def take(self, rows: npt.NDArray[Any]) -> "Placement":
        """The placements on some of the images."""
        return Placement(self.offset[rows], self.extent[rows], self.pixels[rows])

    def _as_points(self, values: Floats) -> Floats:
        return values.reshape(*values.shape[:-1], values.shape[-1] // 2, 2)

    def _per_point(self, sizes: Floats) -> Floats:
        return sizes[..., None, :]


def place_frame(frame: str, image_size: Size, resized: Size | None = None) -> Placement:
    """Where a frame is on one image; sizes are (width, height) in pixels.

    `resized` is needed by the frame of that name and used by no other. Raises ConfigError for an
    unknown frame, a missing `resized` and sizes below 1.
    """
    check_size(image_size, "image_size")
    if frame == "resized" and resized is not None:
        check_size(resized, "resized")
    return _place(
        frame,
        np.array(image_size, np.float64),
        None if resized is None else np.array(resized, np.float64),
    )


def place_frames(
    frame: str, sizes: npt.ArrayLike, resized: npt.ArrayLike | None, num_images: int
) -> Placement:
    """Where a frame is on each of n images; `sizes` and `resized` are `(n, 2)`.

    Raises ConfigError as `place_frame`, and ValueError for arrays of other shapes.
    """
    sizes = _as_sizes(sizes, "sizes", num_images)
    if frame == "resized" and resized is not None:
        resized = _as_sizes(resized, "resized", num_images)
    return _place(frame, sizes, resized)


def _place(frame: str, sizes: Floats, resized: Any) -> Placement:
    if frame == "full":
        return Placement(np.zeros_like(sizes), sizes, sizes)
    if frame == "crop":
        side = np.repeat(sizes.min(axis=-1, keepdims=True), 2, axis=-1)
        return Placement((sizes - side) / 2, side, side)
    if frame == "pad":
        side = np.repeat(sizes.max(axis=-1, keepdims=True), 2, axis=-1)
        # The released LLaVA pastes the image at whole pixels: vlm.images.pad_to_square.
        return Placement(-((side - sizes) // 2), side, side)
    if frame == "resized":
        if resized is None:
            raise ConfigError("the frame 'resized' needs the sizes of the resized images")
        return Placement(np.zeros_like(sizes), sizes, resized)
    raise ConfigError(f"there is no frame {frame!r}", fix=f"one of {', '.join(FRAMES)}")


def _as_sizes(sizes: npt.ArrayLike, name: str, num_images: int) -> Floats:
    array = np.asarray(sizes, dtype=np.float64)
    if not num_images and not array.size:
        array = array.reshape(0, 2)
    if array.shape != (num_images, 2):
        raise ValueError(f"{name} must have the shape ({num_images}, 2), not {array.shape}")
    is_bad = ~(array >= 1).all(axis=1)
    if is_bad.any():
        row = int(np.flatnonzero(is_bad)[0])
        raise ConfigError(
            f"{name} is {tuple(array[row].tolist())} in row {row}; "
            "width and height must be 1 or more"
        )
    return array
