"""How the metric of a sweep changes with one parameter, the others as they were chosen."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from perpo_pipeline.config.evaluations import BASE
from perpo_pipeline.evaluate.metric import Unit
from perpo_pipeline.report.methods import BASE_COLOUR
from perpo_pipeline.report.page.colours import INK, MUTED
from perpo_pipeline.report.page.plots import PANEL_WIDTH
from perpo_pipeline.report.page.svg import draw_svg
from perpo_pipeline.sweep.cells import shown_value

Row = Mapping[str, Any]
LOGARITHMIC = 8  # times between two values from which an axis is logarithmic
BASE_ROOM = 1.0  # heights of the curves, up to which the base beside them is drawn as a line
AXIS_WIDTH, LETTER = 3.2, 0.075  # inches: from the first to the last value; a letter of a label
BESIDE = 0.02  # share of the axis by which the methods' points stand beside each other


@dataclass(frozen=True)
class Point:
    """One setting: its value with its interval, and the value of each seed."""

    x: Any
    value: float
    low: float
    high: float
    seeds: tuple[float, ...]
    is_selected: bool


@dataclass(frozen=True)
class Curve:
    """The settings of one method that differ in one parameter alone."""

    method: str
    colour: str
    points: tuple[Point, ...]


def find_curves(
    rows: Sequence[Row],
    colours: Mapping[str, str],
    together: Sequence[Sequence[str]] = (),
    x: str | None = None,
) -> dict[str, list[Curve]]:
    """By parameter, a curve through each method's chosen setting; `rows` are of one split.

    Parameters that vary `together` have one curve, under the first of them; with `x` there are only
    curves of that parameter. A parameter has no entry if no method has another value of it beside
    its chosen setting.
    """
    chosen = {row["method"]: json.loads(row["setting"]) for row in rows if row["is_selected"]}
    keys = dict.fromkeys(key for setting in chosen.values() for key in setting)
    found: dict[str, list[Curve]] = {}
    for key in keys if x is None else [x]:
        group = next((names for names in together if key in names), (key,))
        if x is None and key != group[0]:
            continue
        for method, setting in chosen.items():
            points = _points(rows, method, setting, key, group) if key in setting else []
            if len(points) > 1:
                curve = Curve(method, colours[method], tuple(points))
                found.setdefault(key, []).append(curve)
    return found


def _points(
    rows: Sequence[Row], method: str, chosen: Row, key: str, group: Sequence[str]
) -> list[Point]:
    """The settings that equal the chosen one in all but `group`, in the order of `key`'s values.

    Grids may differ in their parameters: a setting that does not name `key` has no place here.
    """
    by_setting: dict[str, list[Row]] = {}
    for row in rows:
        setting = json.loads(row["setting"])
        same = row["method"] == method and _without(setting, group) == _without(chosen, group)
        if same and key in setting:
            by_setting.setdefault(row["setting"], []).append(row)
    points = [_point(json.loads(setting)[key], own) for setting, own in by_setting.items()]
    return sorted(points, key=lambda point: point.x) if _are_numbers(points) else points


def _point(x: Any, own: Sequence[Row]) -> Point:
    """The rows of one setting: its seeds, and their mean if there are several."""
    return Point(
        x=x,
        value=own[-1]["value"],
        low=own[-1]["low"],
        high=own[-1]["high"],
        seeds=tuple(row["value"] for row in own if row["num_seeds"] == 1),
        is_selected=own[-1]["is_selected"],
    )


def methods_as_curves(rows: Sequence[Row], colours: Mapping[str, str]) -> list[Curve]:
    """A single point for each method, at its name: its chosen setting; `rows` are of one split."""
    own: dict[str, list[Row]] = {}
    for row in rows:
        if row["is_selected"]:
            own.setdefault(row["method"], []).append(row)
    return [Curve(name, colours[name], (_point(name, found),)) for name, found in own.items()]


def value_of_base(rows: Sequence[Row]) -> float | None:
    """The value of the base on one split, where no parameter changes it."""
    found = [row["value"] for row in rows if row["method"] == BASE and row["setting"] == "{}"]
    return found[-1] if found else None


def _without(setting: Row, keys: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in setting.items() if name not in keys}


def _are_numbers(points: Sequence[Point]) -> bool:
    return all(isinstance(p.x, int | float) and not isinstance(p.x, bool) for p in points)


def is_geometric(values: Sequence[float]) -> bool:
    """Whether ascending values are spaced more evenly by their ratios than by their differences."""
    if values[0] <= 0 or len(values) < 2:
        return False
    if len(values) == 2:
        return values[1] >= LOGARITHMIC * values[0]
    gaps = [b - a for a, b in pairwise(values)]
    ratios = [math.log(b / a) for a, b in pairwise(values)]
    return max(ratios) / min(ratios) < max(gaps) / min(gaps)


def would_touch(ticks: Sequence[float], labels: Sequence[str]) -> bool:
    """Whether labels at these ascending places would touch if they stood side by side."""
    unit = AXIS_WIDTH / ((ticks[-1] - ticks[0]) or 1.0)
    return any(
        unit * (b - a) < LETTER * (len(left) + len(right) + 2) / 2
        for (a, b), (left, right) in zip(pairwise(ticks), pairwise(labels), strict=True)
    )


def curve_svg(
    curves: Sequence[Curve],
    *,
    unit: Unit,
    x_label: str,
    y_label: str,
    base: float | None = None,
    legend: bool = False,
) -> str:
    """A line per method with 95 % intervals, each seed as a tick, chosen settings as rings.

    `base` is a dashed line, or only a number where a line would squeeze the curves together;
    `legend` names the lines in the picture itself.
    """
    every = [point for curve in curves for point in curve.points]
    is_number = _are_numbers(every)
    values = sorted({p.x for p in every}) if is_number else []
    names = list(dict.fromkeys(shown_value(point.x) for point in every))
    is_log = is_number and is_geometric(values)

    def place(point: Point) -> float:
        if not is_number:
            return float(names.index(shown_value(point.x)))
        return math.log(point.x) if is_log else float(point.x)

    def draw(axes: Any) -> None:
        places = [place(point) for point in every]
        width = (max(places) - min(places)) or 1.0
        if base is not None:
            _draw_base(axes, base, every, unit)
        aside = [BESIDE * width * (n - (len(curves) - 1) / 2) for n in range(len(curves))]
        for curve, shift in zip(curves, aside if is_number else [0.0] * len(aside), strict=True):
            _draw_curve(axes, curve, [place(point) + shift for point in curve.points], unit)
        if is_number:
            ticks = [math.log(value) if is_log else float(value) for value in values]
            labels = [shown_value(value) for value in values]
            axes.set_xticks(ticks, labels)
            if would_touch(ticks, labels):
                axes.tick_params(axis="x", labelrotation=40)
        else:
            axes.set_xticks(range(len(names)), names)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.margins(x=0.08, y=0.12)
        if legend:
            place_of_legend = {"loc": "outside upper left", "ncols": 4, "columnspacing": 1.2}
            axes.figure.legend(frameon=False, labelcolor=MUTED, fontsize=9, **place_of_legend)

    return draw_svg(draw, f"{y_label} by {x_label}", (PANEL_WIDTH, 2.8))


def _draw_base(axes: Any, base: float, points: Sequence[Point], unit: Unit) -> None:
    shown = [y for p in points for y in (p.low, p.value, p.high) if not math.isnan(y)]
    low, high = min(shown, default=base), max(shown, default=base)
    room = BASE_ROOM * (high - low)
    if low - room <= base <= high + room:
        axes.axhline(unit.factor * base, color=BASE_COLOUR, linestyle="--", label=BASE)
        return
    side, place = ("below", 0.03) if base < low else ("above", 0.92)
    words = f"{BASE}: {unit.number(base)}, {side}"
    axes.text(0.99, place, words, transform=axes.transAxes, ha="right", color=BASE_COLOUR)


def _draw_curve(axes: Any, curve: Curve, places: Sequence[float], unit: Unit) -> None:
    colour, scale = curve.colour, unit.factor
    values = [scale * point.value for point in curve.points]
    look: dict[str, Any] = {"color": colour, "linewidth": 1.8, "marker": "o", "markersize": 5}
    axes.plot(places, values, label=curve.method, **look)
    for x, point, value in zip(places, curve.points, values, strict=True):
        axes.plot([x, x], [scale * point.low, scale * point.high], color=colour, linewidth=1.2)
        for seed in point.seeds if len(point.seeds) > 1 else ():
            axes.plot([x], [scale * seed], "_", color=colour, markersize=11, markeredgewidth=1.4)
        if point.is_selected and len(curve.points) > 1:
            axes.plot([x], [value], "o", color=INK, markersize=10, fillstyle="none")
