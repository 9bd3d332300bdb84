"""Plots as inline SVG: narrow panels whose text is readable on a phone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from perpo_pipeline.evaluate.metric import Unit
from perpo_pipeline.report.page.colours import INK, MUTED
from perpo_pipeline.report.page.svg import draw_svg
from perpo_pipeline.report.training_log import Floats

PANEL_WIDTH = 4.2  # inches; an inch is 96 px on the page

SMOOTHING = 0.05
"""Curves are averaged over this share of the steps; the raw values are drawn pale behind them."""
MOST_BINS = 120  # of a histogram


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
    unit: Unit,
    name: str,
    zero: bool = False,
) -> str:
    """One line per bar, the first at the top: its value and interval in `unit`.

    `zero`: the values are differences; they get their sign, and the plot a line at 0.
    """

    def draw(axes: Any) -> None:
        for y, bar in enumerate(bars):
            value, low, high = (unit.factor * v for v in (bar.value, bar.low, bar.high))
            axes.plot([low, high], [y, y], color=bar.colour, linewidth=2.2, solid_capstyle="round")
            axes.plot([value], [y], "o", color=bar.colour, markersize=7.5, zorder=4)
            axes.annotate(
                unit.signed(bar.value) if zero else unit.number(bar.value),
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
        axes.xaxis.set_major_locator(MaxNLocator(5))  # more labels of three decimals would meet

    return draw_svg(draw, name, (PANEL_WIDTH, 0.75 + 0.46 * len(bars)))


def curve_plot(curves: Sequence[Curve], *, name: str) -> str:
    """Smoothed curves over optimiser steps; one that equals an earlier one is dashed over it."""

    def draw(axes: Any) -> None:
        for at, curve in enumerate(curves):
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
                linestyle=(0, (3, 3)) if _is_drawn(curve, curves[:at]) else "-",
                marker="o" if len(values) == 1 else None,
            )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _plain_number(y)))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("optimiser step")

    return draw_svg(draw, name, (PANEL_WIDTH, 2.6))


def _is_drawn(curve: Curve, earlier: Sequence[Curve]) -> bool:
    return any(
        np.array_equal(curve.steps, one.steps)
        and np.array_equal(curve.values, one.values, equal_nan=True)
        for one in earlier
    )


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
    """Stacked histogram of values in [0, 1], the first part at the bottom, without a legend.

    `threshold` is a dashed line at the edge of a bin.
    """
    edges = histogram_edges(threshold, [part.values for part in parts])

    def draw(axes: Any) -> None:
        if shown := [part for part in parts if len(part.values)]:
            axes.hist(
                [part.values for part in shown],
                bins=edges,
                stacked=True,
                color=[part.colour for part in shown],
                edgecolor="white",
                linewidth=0.6,
            )
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=1.3, linestyle=(0, (4, 3)))
        axes.set(xlabel=x_label, ylabel=y_label, xlim=(0, edges[-1]))
        axes.grid(False, axis="x")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))

    return draw_svg(draw, name, (PANEL_WIDTH, 2.6))


def histogram_edges(threshold: float | None, values: Sequence[Floats]) -> list[float]:
    """Edges of equal bins from 0 to 1 that show a threshold; to less if all values are small.

    The threshold is an edge with at least two bins below it, each at most 0.05 wide: margins of
    edit distances lie around 0.04, where bins of 0.05 would hide it. Where that makes more than
    MOST_BINS, there are so many equal ones, and the threshold cuts the one that it lies in.
    """
    if not threshold:
        return [float(edge) for edge in np.linspace(0, 1, 21)]
    width = threshold / max(2, np.ceil(threshold / 0.05))
    largest = max((float(part.max()) for part in values if len(part)), default=1.0)
    end = min(1.0, max(largest, 4 * threshold))
    if end / width > MOST_BINS:
        return sorted({*(float(edge) for edge in np.linspace(0, end, MOST_BINS + 1)), threshold})
    number = int(np.ceil(end / width - 1e-9))
    edges = [min(1.0, round(width * edge, 12)) for edge in range(number + 1)]
    return [*edges[:-1], max(edges[-1], end)]  # rounding must not leave out the largest value


def best_of_n_plot(values: Floats, *, y_label: str, unit: Unit, colour: str, name: str) -> str:
    """The expected best of n for n = 1..N, `(N,)`, with its first and last value as text."""

    def draw(axes: Any) -> None:
        n = np.arange(1, len(values) + 1)
        scaled = unit.factor * values
        axes.plot(n, scaled, color=colour, linewidth=2, marker="o", markersize=4)
        for i, ha in sorted({0: "left", len(values) - 1: "right"}.items()):
            axes.annotate(
                unit.number(float(values[i])),
                (n[i], scaled[i]),
                (0, -14 if values[-1] >= values[0] else 8),
                ha=ha,
                textcoords="offset points",
                color=colour,
                fontweight="bold",
            )
        axes.set(xlabel="samples n", ylabel=y_label)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _plain_number(y)))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.margins(y=0.2)

    return draw_svg(draw, name, (PANEL_WIDTH, 2.6))
