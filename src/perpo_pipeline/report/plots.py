"""Plots as inline SVG: narrow panels whose text is readable on a phone."""

import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from perpo_pipeline.report.data import Floats

INK, MUTED, RULE, PALE = "#1b1f24", "#5b6470", "#d9dde2", "#eef0f3"
PANEL_WIDTH = 4.2  # inches; an inch is 96 px on the page
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
    "grid.color": PALE,
    "grid.linewidth": 1.0,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
SMOOTHING = 0.05
"""Curves are averaged over this share of the steps; the raw values are drawn pale behind them."""


@dataclass(frozen=True)
class Bar:
    """One line of an interval plot: a value with its interval."""

    label: str
    colour: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """A training curve: `steps` and `values` are `(n,)`, NaN where nothing was logged."""

    colour: str
    steps: Floats
    values: Floats


@dataclass(frozen=True)
class Part:
    """One part of a stacked histogram; `values` is `(n,)`, in [0, 1]."""

    label: str
    colour: str
    values: Floats


def interval_plot(
    bars: Sequence[Bar],
    *,
    x_label: str,
    name: str,
    zero: bool = False,
    scale: float = 100.0,
    decimals: int = 1,
) -> str:
    """One line per bar, the first at the top: its value and interval; `zero` draws a line at 0.

    Values are multiplied by `scale` and written with `decimals`.
    """

    def draw(axes: Any) -> None:
        for y, bar in enumerate(bars):
            value, low, high = (scale * v for v in (bar.value, bar.low, bar.high))
            axes.plot([low, high], [y, y], color=bar.colour, linewidth=2.2, solid_capstyle="round")
            axes.plot([value], [y], "o", color=bar.colour, markersize=7.5, zorder=4)
            text = f"{value:{'+' if zero else ''}.{decimals}f}"
            axes.annotate(
                text,
                (value, y),
                (0, 7),
                textcoords="offset points",
                ha="center",
                color=bar.colour,
                fontweight="bold",
                fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )
        if zero:
            axes.axvline(0, color=MUTED, linewidth=1.2, zorder=1)
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
        axes.tick_params(axis="y", labelcolor=INK, labelsize=10)
        axes.set_ylim(len(bars) - 0.5, -0.75)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(x_label)
        axes.margins(x=0.12)

    return _svg(draw, name, (PANEL_WIDTH, 0.75 + 0.46 * len(bars)))


def curve_plot(curves: Sequence[Curve], *, name: str) -> str:
    """Smoothed curves over optimiser steps."""

    def draw(axes: Any) -> None:
        for curve in curves:
            known = np.isfinite(curve.values)
            steps, values = curve.steps[known], curve.values[known]
            window = max(1, round(SMOOTHING * len(values)))
            if window > 1:
                axes.plot(steps, values, color=curve.colour, alpha=0.18, linewidth=0.8)
            axes.plot(
                steps,
                _smoothed(values, window),
                color=curve.colour,
                linewidth=1.8,
                marker="o" if len(values) == 1 else None,
            )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _plain_number(y)))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("optimiser step")

    return _svg(draw, name, (PANEL_WIDTH, 2.6))


def _plain_number(value: float) -> str:
    """Such as 0.25 or 2e-05: short enough for an axis, also for learning rates."""
    return f"{value:.6g}".replace("-", "−") if abs(value) >= 1e-3 or not value else f"{value:.2g}"


def _smoothed(values: Floats, window: int) -> Floats:
    """Centred moving average; the window is shorter at both ends."""
    kernel = np.ones(window)
    sums = np.convolve(values, kernel, mode="same")
    return np.asarray(sums / np.convolve(np.ones_like(values), kernel, mode="same"))


def histogram(
    parts: Sequence[Part],
    *,
    x_label: str,
    y_label: str,
    name: str,
    threshold: float | None = None,
) -> str:
    """Stacked histogram on [0, 1], the first part at the bottom; the legend is in the page."""

    def draw(axes: Any) -> None:
        shown = [part for part in parts if len(part.values)]
        axes.hist(
            [part.values for part in shown],
            bins=np.linspace(0, 1, 21).tolist(),
            stacked=True,
            color=[part.colour for part in shown],
            edgecolor="white",
            linewidth=0.6,
        )
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=1.3, linestyle=(0, (4, 3)))
        axes.set(xlabel=x_label, ylabel=y_label, xlim=(0, 1))
        axes.grid(False, axis="x")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))

    return _svg(draw, name, (PANEL_WIDTH, 2.6))


def best_of_n_plot(values: Floats, *, y_label: str, colour: str, name: str) -> str:
    """The expected best of n for n = 1..N, `(N,)`, with its first and last value as text."""

    def draw(axes: Any) -> None:
        n = np.arange(1, len(values) + 1)
        axes.plot(n, values, color=colour, linewidth=2, marker="o", markersize=4)
        for i, ha in sorted({0: "left", len(values) - 1: "right"}.items()):
            axes.annotate(
                f"{100 * values[i]:.1f}",
                (n[i], values[i]),
                (0, -14),
                ha=ha,
                textcoords="offset points",
                color=colour,
                fontweight="bold",
            )
        axes.set(xlabel="samples n", ylabel=y_label)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.margins(y=0.2)

    return _svg(draw, name, (PANEL_WIDTH, 2.6))


def _svg(draw: Callable[[Any], None], name: str, size: tuple[float, float]) -> str:
    """Draw on new axes and return an `<svg>` element; the same input gives the same text."""
    no_metadata = {"Creator": None, "Date": None, "Format": None, "Type": None}
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        sink = io.StringIO()
        figure.savefig(sink, format="svg", metadata=no_metadata)
    return _inline(sink.getvalue(), name)


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
    return f'<svg {box[0]} role="img" aria-label="{html.escape(name)}">{body.strip()}'
