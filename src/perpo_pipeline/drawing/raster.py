"""A picture with marks in its pixels, drawn by Matplotlib."""

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from perpo_pipeline.drawing.marks import Mark
from perpo_pipeline.drawing.overlay import HALO
from perpo_pipeline.drawing.tags import Tag, place_tags

if TYPE_CHECKING:
    from PIL import Image

LEAST_SIDE_PX = 480
"""A smaller image is enlarged by a whole number, each pixel as a square: lines need room."""
DPI = 72.0  # a point of Matplotlib is a pixel
LINE_SHARE = 0.004  # width of a line on a large photograph, of its longer side
POINT_PX, TEXT_PX = 7.0, 13.0


def draw(image: "Image.Image", marks: Sequence[Mark]) -> "Image.Image":
    """A copy of an image with marks on it, RGB; marks are in pixels of the given image."""
    from PIL import Image

    times = _enlargement(image.size)
    if times > 1:
        size = (image.width * times, image.height * times)
        image = image.resize(size, Image.Resampling.NEAREST)
    png = _png(image.convert("RGB"), [_enlarged(mark, times) for mark in marks])
    with Image.open(io.BytesIO(png)) as drawn:
        return drawn.convert("RGB")


def _enlargement(size: tuple[int, int]) -> int:
    return max(1, -(-LEAST_SIDE_PX // max(size)))


def _enlarged(mark: Mark, times: int) -> Mark:
    return replace(mark, points=tuple((x * times, y * times) for x, y in mark.points))


def _png(image: "Image.Image", marks: Sequence[Mark]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(image.width / DPI, image.height / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(image, extent=(0, image.width, image.height, 0), interpolation="none")
    axes.set_autoscale_on(False)
    weight = max(1.0, LINE_SHARE * max(image.size) / 3)
    for mark in marks:
        _draw_one(axes, mark, weight)
    text_px = TEXT_PX * weight
    for tag in place_tags(marks, text_px, image.size):
        _write_label(axes, tag, text_px)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=DPI)
    return sink.getvalue()


def _draw_one(axes: Any, mark: Mark, weight: float) -> None:
    """The line of a mark over a wider white one."""
    width = mark.style.line_px * weight
    for colour, opacity, wide in (("#fff", 0.8, width * HALO), (mark.style.colour, 1.0, width)):
        if mark.kind == "point":
            look = {"markeredgecolor": colour, "markeredgewidth": wide, "markerfacecolor": "none"}
            axes.plot(*mark.points[0], "o", markersize=2 * POINT_PX * weight, alpha=opacity, **look)
            continue
        xs, ys = zip(*mark.points, mark.points[0], strict=True)
        (line,) = axes.plot(xs, ys, color=colour, alpha=opacity, linewidth=wide)
        line.set(solid_joinstyle="round", dash_capstyle="round")
        if mark.style.dash and colour == mark.style.colour:
            line.set_dashes([length / mark.style.line_px for length in mark.style.dash])


def _write_label(axes: Any, tag: Tag, text_px: float) -> None:
    from matplotlib.patches import Rectangle

    colour = tag.mark.style.colour
    axes.add_patch(Rectangle((tag.x, tag.y), tag.width, tag.height, color=colour, linewidth=0))
    axes.text(
        tag.x + tag.width / 2,
        tag.y + 0.72 * tag.height,
        tag.mark.label,
        color="white",
        fontsize=text_px,
        fontweight="bold",
        ha="center",
        va="baseline",
        parse_math=False,
    )
