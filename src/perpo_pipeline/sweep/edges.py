"""Chosen values at the edge of what was tried: a better one may lie beyond."""

import json
from collections.abc import Sequence

from perpo_pipeline.sweep.cells import Cell, shown_value
from perpo_pipeline.sweep.results import Chosen


def at_edge(cells: Sequence[Cell], chosen: Chosen) -> list[str]:
    """A warning for each chosen number that is the largest or the smallest of several tried."""
    warnings = []
    for method, setting_json in chosen.items():
        for key, value in json.loads(setting_json).items():
            tried = [cell.setting[key] for cell in cells if _varies(cell, method, key)]
            if not all(map(_is_number, tried)) or len(values := sorted(set(tried))) < 2:
                continue
            if value in (values[0], values[-1]):
                side = "below" if value == values[0] else "above"
                shown = ", ".join(map(shown_value, values))
                warnings.append(
                    f"{key} {shown_value(value)}, chosen for {method}, is at the edge of what was "
                    f"tried ({shown}): also try values {side} it"
                )
    return warnings


def _varies(cell: Cell, method: str, key: str) -> bool:
    return cell.method == method and key in cell.setting


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
