"""Chosen values at the edge of what was tried: a better one may lie beyond."""

import json
import math
from collections.abc import Sequence
from typing import Any

from perpo_pipeline.config.limits import limits_of
from perpo_pipeline.filter.margins import OVER_CAP, OVER_DATASET_SHARE
from perpo_pipeline.store.artifacts import input_of
from perpo_pipeline.sweep.cells import Cell, shown_value
from perpo_pipeline.sweep.results import Chosen, Measured

LIST_SIZE, MAX_LISTS = "filter.list_size", "filter.max_lists"
CAPS = (LIST_SIZE, MAX_LISTS, "filter.max_margin")
"""Settings whose `null` is no limit."""


def at_edge(cells: Sequence[Cell], chosen: Chosen, measured: Sequence[Measured] = ()) -> list[str]:
    """A warning for each chosen number that is the largest or the smallest of several tried.

    There is none where nothing lies beyond: at a limit of the setting (`gamma: 0`), where
    `list_size` takes every sample, and where `max_lists` kept every list, as `measured` show. Of
    CAPS a `null` that was tried lies above every number; of other settings it has no place.
    """
    warnings = []
    for method, setting_json in chosen.items():
        here = method, setting_json
        own = [cell for cell in cells if (cell.method, cell.setting_json) == here]
        results = [one for one in measured if (one.cell.method, one.cell.setting_json) == here]
        for key, value in json.loads(setting_json).items():
            tried = [cell.setting[key] for cell in cells if _varies(cell, method, key)]
            places = sorted({_place(one) for one in tried if _has_place(key, one)})
            if not all(one is None or _is_number(one) for one in tried) or len(places) < 2:
                continue
            if not _has_place(key, value) or _place(value) not in (places[0], places[-1]):
                continue
            side = "below" if _place(value) == places[0] else "above"
            if own and _is_last(key, value, side, own[0], results):
                continue
            shown = ", ".join(shown_value(None if math.isinf(at) else at) for at in places)
            warnings.append(
                f"{key} {shown_value(value)}, chosen for {method}, is at the edge of what was "
                f"tried ({shown}): also try values {side} it"
            )
    return warnings


def _is_last(
    key: str, value: float | None, side: str, cell: Cell, measured: Sequence[Measured]
) -> bool:
    """Whether no further value on this side could give anything else."""
    if value is None:
        return True
    low, high = limits_of(key, cell.config)
    if side == "below":
        return low is not None and value <= low
    if key == LIST_SIZE:
        high = cell.config.sample.num_samples
    if key == MAX_LISTS and measured:
        return _keeps_every_list(measured[0])
    return high is not None and value >= high


def _keeps_every_list(one: Measured) -> bool:
    """Whether the cap of a cell's lists dropped none."""
    dropped = input_of(one.version, "preferences").manifest["counts"].get("dropped", {})
    return not {OVER_CAP, OVER_DATASET_SHARE} & dropped.keys()


def _varies(cell: Cell, method: str, key: str) -> bool:
    return cell.method == method and key in cell.setting


def _has_place(key: str, value: object) -> bool:
    """Whether a value is a number, or the null of a cap."""
    return _is_number(value) or (value is None and key in CAPS)


def _place(value: Any) -> float:
    """The number by which values are ordered; that of a cap's null is infinite."""
    return math.inf if value is None else value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
