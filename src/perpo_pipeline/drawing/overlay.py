"""Marks as SVG that lies over an image on a page, and the image inside the page's own file."""

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from perpo_pipeline.drawing.marks import Mark, Point
from perpo_pipeline.drawing.tags import Tag, place_tags

if TYPE_CHECKING:
    from PIL import Image

LONGEST_SIDE_PX = 640
HALO = 1.73  # width of the white line under a line, of the line's own
TEXT_SHARE = 0.05  # height of a label, of the image's width
HIGHEST_TEXT_SHARE = 0.25  # of the height of a flat image
POINT_SHARE = 0.018  # radius of a point, of the image's longer side
_LINE = (
    'fill="none" stroke-linejoin="round" stroke-linecap="round" vector-effect="non-scaling-stroke"'
)
_FONT = 'text-anchor="middle" font-family="system-ui, sans-serif" font-weight="600" fill="#fff"'
_FILL_PARENT = "position:absolute;inset:0;width:100%;height:100%;max-width:none"


def overlay(
    marks: Sequence[Mark], width: int, height: int, *, labels: bool = True, styled: bool = True
) -> str:
    """An `<svg>` element to put over an image of `width` x `height` pixels, shown at any size.

    It fills its parent, which must be the image's own box with `position: relative`; without
    `styled` the page's own style sheet makes it do so, where none may be in an element. Screen
    readers skip it: the image's alt text says what `marks.describe` returns.
    """
    radius = POINT_SHARE * max(width, height)
    size = min(TEXT_SHARE * width, HIGHEST_TEXT_SHARE * height)
    halos = [_shape(mark, radius, halo=True) for mark in marks]
    lines = [_shape(mark, radius, halo=False) for mark in marks]
    placed = place_tags(marks, size, (width, height)) if labels else []
    style = f' style="{_FILL_PARENT}"' if styled else ""
    return (
        f'<svg class="marks" viewBox="0 0 {width} {height}" preserveAspectRatio="none" '
        f'aria-hidden="true"{style}>'
        + "".join([*halos, *lines, *(_tag(tag, size) for tag in placed)])
        + "</svg>"
    )


def data_uri(image: "Image.Image", longest_side_px: int = LONGEST_SIDE_PX) -> str:
    """An image for a page: exact PNG if it is small, else JPEG of at most `longest_side_px`."""
    from PIL import Image

    longest = max(image.size)
    small = longest <= longest_side_px // 2
    if longest > longest_side_px:
        image = image.copy()
        image.thumbnail((longest_side_px, longest_side_px), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    if small:
        image.save(sink, format="PNG", optimize=True)
    else:
        image.save(sink, format="JPEG", quality=82, optimize=True)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(sink.getvalue()).decode()}"


def _shape(mark: Mark, radius: float, *, halo: bool) -> str:
    style = mark.style
    if halo:
        stroke = f'stroke="#fff" stroke-opacity=".8" stroke-width="{style.line_px * HALO:g}"'
    else:
        dash = " ".join(f"{length:g}" for length in style.dash)
        stroke = f'stroke="{style.colour}" stroke-width="{style.line_px:g}"'
        stroke += f' stroke-dasharray="{dash}"' if dash else ""
    if mark.kind == "point":
        x, y = mark.points[0]
        return f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{radius:.2f}" {stroke} {_LINE}/>'
    return f'<polygon points="{_corners(mark.points)}" {stroke} {_LINE}/>'


def _corners(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in points)


def _tag(tag: Tag, size: float) -> str:
    return (
        f'<rect x="{tag.x:.2f}" y="{tag.y:.2f}" width="{tag.width:.2f}" '
        f'height="{tag.height:.2f}" fill="{tag.mark.style.colour}"/>'
        f'<text x="{tag.x + tag.width / 2:.2f}" y="{tag.y + 0.72 * tag.height:.2f}" '
        f'font-size="{size:.2f}" {_FONT}>{html.escape(tag.mark.label)}</text>'
    )
