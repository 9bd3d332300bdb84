"""Matplotlib figures as SVG elements for a page."""

import html
import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from perpo_pipeline.report.page.colours import (
    GRID,
    INK,
    MUTED,
    RULE,
    theme,
    themed,
    variables,
)

STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 1.0,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def draw_svg(draw: Callable[[Any], None], name: str, size: tuple[float, float]) -> str:
    """Draw on new axes and return an `<svg>` element; the same input gives the same text.

    Its colours are variables of the page's style sheet (colours.py), so they suit a dark page.
    """
    no_metadata = {"Creator": None, "Date": None, "Format": None, "Type": None}
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        sink = io.StringIO()
        figure.savefig(sink, format="svg", metadata=no_metadata)
    return _inline(sink.getvalue(), name)


def svg_file(element: str) -> str:
    """An element of `draw_svg` as a file of its own, on the paper of a light or a dark page.

    It follows the reader's theme, and has its own paper, so it can be read on any page.
    """
    light, dark = (
        f"{theme(dark=is_dark)} {variables(element, dark=is_dark)}" for is_dark in (False, True)
    )
    style = (
        f"<style>:root {{ {light} }} "
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}</style>"
    )
    paper = '<rect width="100%" height="100%" rx="4" style="fill: var(--paper)"/>'
    head, body = element.split(">", 1)
    sizes = re.search(r'viewBox="[\d.-]+ [\d.-]+ ([\d.]+) ([\d.]+)"', head)
    if sizes is None:
        raise ValueError("the element has no viewBox")
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"')
    size = f' width="{sizes[1]}pt" height="{sizes[2]}pt" font-family="system-ui, sans-serif"'
    return f"{head}{size}>\n{style}\n{paper}\n{body}\n"


def _inline(text: str, name: str) -> str:
    """Remove what only an SVG file needs: header, name spaces, unused ids, fixed size, font."""
    text = text[text.index("<svg") :]
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", text)
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="[\d. -]+"', head)
    if box is None:
        raise ValueError("Matplotlib wrote an SVG without a viewBox")
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = body.replace("'DejaVu Sans', sans-serif", "system-ui, sans-serif")
    body = body.replace("xlink:href", "href")
    body = re.sub(r"<[^>]*>", lambda m: _with_variables(m[0]), body)
    return f'<svg {box[0]} role="img" aria-label="{html.escape(name)}">{body.strip()}'


def _with_variables(tag: str) -> str:
    is_text = tag.startswith("<text")
    return re.sub(r"#[0-9a-f]{6}(?=[;\"'])", lambda m: themed(m[0], is_text=is_text), tag)
