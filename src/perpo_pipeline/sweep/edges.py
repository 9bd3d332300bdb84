"""Chosen values at the edge of what was tried: a better one may lie beyond."""

import json
from collections.abc import Sequence

from perpo_pipeline.config.limits import limits_of
from perpo_pipeline.filter.margins import OVER_CAP, OVER_DATASET_SHARE
from perpo_pipeline.store.artifacts import input_of
from perpo_pipeline.sweep.cells import Cell, shown_value
from perpo_pipeline.sweep.results import Chosen, Measured

LIST_SIZE, MAX_LISTS = "filter.list_size", "filter.max_lists"


def at_edge(cells: Sequence[Cell], chosen: Chosen, measured: Sequence[Measured] = ()) -> list[str]:
    """A warning for each chosen number that is the largest or the smallest of several tried.

    There is none where nothing lies beyond: at a limit of the setting (`gamma: 0`), where
    `list_size` takes every sample, and where `max_lists` kept every list, as `measured` show.
    """
    warnings = []
    for method, setting_json in chosen.items():
        here = method, setting_json
        own = [cell for cell in cells if (cell.method, cell.setting_json) == here]
        results = [one for one in measured if (one.cell.method, one.cell.setting_json) == here]
        for key, value in json.loads(setting_json).items():
            tried = [cell.setting[key] for cell in cells if _varies(cell, method, key)]
            if not all(map(_is_number, tried)) or len(values := sorted(set(tried))) < 2:
                continue
            if value not in (values[0], values[-1]):
                continue
            side = "below" if value == values[0] else "above"
            if own and _is_last(key, value, side, own[0], results):
                continue
            shown = ", ".join(map(shown_value, values))
            warnings.append(
                f"{key} {shown_value(value)}, chosen for {method}, is at the edge of what was "
                f"tried ({shown}): also try values {side} it"
            )
    return warnings


def _is_last(key: str, value: float, side: str, cell: Cell, measured: Sequence[Measured]) -> bool:
    """Whether no further value on this side could give anything else."""
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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
