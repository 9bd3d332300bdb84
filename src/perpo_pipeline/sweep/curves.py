"""How the metric of a sweep changes with one parameter, the others as they were chosen."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perpo_pipeline.evaluate.metric import Unit
from perpo_pipeline.report.page.colours import INK
from perpo_pipeline.report.page.plots import PANEL_WIDTH
from perpo_pipeline.report.page.svg import draw_svg
from perpo_pipeline.sweep.cells import shown_value

Row = Mapping[str, Any]
LOGARITHMIC = 8  # times between the smallest and the largest value of an axis


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


def find_curves(rows: Sequence[Row], colours: Mapping[str, str]) -> dict[str, list[Curve]]:
    """By parameter, a curve through each method's chosen setting; `rows` are of one split.

    A parameter has no entry if no method has another value of it beside its chosen setting.
    """
    chosen = {row["method"]: json.loads(row["setting"]) for row in rows if row["is_selected"]}
    keys = dict.fromkeys(key for setting in chosen.values() for key in setting)
    found: dict[str, list[Curve]] = {}
    for key in keys:
        for method, setting in chosen.items():
            points = _points(rows, method, setting, key) if key in setting else []
            if len(points) > 1:
                curve = Curve(method, colours[method], tuple(points))
                found.setdefault(key, []).append(curve)
    return found


def _points(rows: Sequence[Row], method: str, chosen: Row, key: str) -> list[Point]:
    """The settings that equal the chosen one in all but `key`, in the order of its values."""
    by_setting: dict[str, list[Row]] = {}
    for row in rows:
        setting = json.loads(row["setting"])
        if row["method"] == method and _without(setting, key) == _without(chosen, key):
            by_setting.setdefault(row["setting"], []).append(row)
    points = [
        Point(
            x=json.loads(setting)[key],
            value=own[-1]["value"],
            low=own[-1]["low"],
            high=own[-1]["high"],
            seeds=tuple(row["value"] for row in own if row["num_seeds"] == 1),
            is_selected=own[-1]["is_selected"],
        )
        for setting, own in by_setting.items()
    ]
    return sorted(points, key=lambda point: point.x) if _are_numbers(points) else points


def _without(setting: Row, key: str) -> dict[str, Any]:
    return {name: value for name, value in setting.items() if name != key}


def _are_numbers(points: Sequence[Point]) -> bool:
    return all(isinstance(p.x, int | float) and not isinstance(p.x, bool) for p in points)


def curve_svg(curves: Sequence[Curve], *, unit: Unit, x_label: str, y_label: str) -> str:
    """A line per method with 95 % intervals, each seed as a tick, chosen settings as rings."""
    every = [point for curve in curves for point in curve.points]
    is_number = _are_numbers(every)
    values = sorted({p.x for p in every}) if is_number else []
    names = list(dict.fromkeys(shown_value(point.x) for point in every))
    is_log = is_number and values[0] > 0 and values[-1] >= LOGARITHMIC * values[0]

    def place(point: Point) -> float:
        return float(point.x) if is_number else float(names.index(shown_value(point.x)))

    def draw(axes: Any) -> None:
        if is_log:
            axes.set_xscale("log")
        for curve in curves:
            _draw_curve(axes, curve, [place(point) for point in curve.points], unit)
        if is_number:
            axes.set_xticks(values, [shown_value(value) for value in values])
            axes.set_xticks([], minor=True)
        else:
            axes.set_xticks(range(len(names)), names)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.margins(x=0.08, y=0.12)

    return draw_svg(draw, f"{y_label} by {x_label}", (PANEL_WIDTH, 2.8))


def _draw_curve(axes: Any, curve: Curve, places: Sequence[float], unit: Unit) -> None:
    colour, scale = curve.colour, unit.factor
    values = [scale * point.value for point in curve.points]
    axes.plot(places, values, color=colour, linewidth=1.8, marker="o", markersize=5)
    for x, point, value in zip(places, curve.points, values, strict=True):
        axes.plot([x, x], [scale * point.low, scale * point.high], color=colour, linewidth=1.2)
        for seed in point.seeds if len(point.seeds) > 1 else ():
            axes.plot([x], [scale * seed], "_", color=colour, markersize=11, markeredgewidth=1.4)
        if point.is_selected:
            axes.plot([x], [value], "o", color=INK, markersize=10, fillstyle="none")
