"""Metrics as plain text for a terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

# All others are shares in [0, 1] and shown in per cent.
SCALES = {
    "mmhal_score": "of 6",
    "reference_rating": "of 10",
    "model_rating": "of 10",
    **{
        f"{aspect}_{model}": "of 5"
        for aspect in ("response_accuracy", "instruction_adherence", "hallucination_reduction")
        for model in ("a", "b")
    },
}


def metrics_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Aligned text of METRICS rows, one a metric, split and dataset: value, 95 % interval, n.

    Shares are in per cent, ratings on their own scale; an interval that is not known is `-`.
    """
    head = ("metric", "split", "dataset", "value", "", "95 % interval", "n")
    cells = [head, *(_cells(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join(_line(row, widths) for row in cells)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    scale = SCALES.get(row["name"])
    low, high = (_number(row[end], scale) for end in ("low", "high"))
    interval = "-" if math.isnan(row["low"]) else f"[{low}, {high}]"
    return (
        row["name"],
        row["split"],
        row["dataset"],
        _number(row["value"], scale),
        scale or "%",
        interval,
        str(row["n"]),
    )


def _number(value: float, scale: str | None) -> str:
    return f"{value:.2f}" if scale else f"{100 * value:.1f}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Names to the left, numbers to the right."""
    name, split, dataset, value, scale, interval, n = zip(cells, widths, strict=True)
    left = [cell.ljust(width) for cell, width in (name, split, dataset)]
    right = [
        value[0].rjust(value[1]),
        scale[0].ljust(scale[1]),
        interval[0].rjust(interval[1]),
        n[0].rjust(n[1]),
    ]
    return "  ".join([*left, " ".join(right[:2]), *right[2:]])


def pivot(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str:
    """Aligned text, in per cent: a line for each value of `keys`, a column for each metric.

    Rows have the keys, name, value, low, high and n (that of a line's first metric is shown).
    """
    names = list(dict.fromkeys(row["name"] for row in rows))
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        line = lines.setdefault(tuple(str(row[key]) for key in keys), {"n": str(row["n"])})
        line[row["name"]] = _estimate(row)
    head = [*keys, *names, "n"]
    cells = [
        head,
        *(
            [*place, *(line.get(name, "-") for name in [*names, "n"])]
            for place, line in lines.items()
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _estimate(row: Mapping[str, Any]) -> str:
    value, low, high = (_number(row[name], None) for name in ("value", "low", "high"))
    return value if math.isnan(row["low"]) else f"{value} [{low}, {high}]"
