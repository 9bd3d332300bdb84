"""Metrics as plain text for a terminal, each in its unit (metrics.METRICS)."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from perpo_pipeline.evaluate.metrics import find_metric, main_metric, main_metrics

MOST_COLUMNS = 4  # of values with intervals that are read side by side


def metrics_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Aligned text of METRICS rows, one per metric, split and dataset: value, 95 % interval, n.

    Shares are in per cent, ratings on their own scale; an unknown interval is `-`.
    """
    head = ("metric", "split", "dataset", "value", "", "95 % interval", "n")
    cells = [head, *(_cells(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join(_line(row, widths) for row in cells)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    unit = find_metric(row["name"]).unit
    low, high = unit.number(row["low"]), unit.number(row["high"])
    interval = "-" if math.isnan(row["low"]) else f"[{low}, {high}]"
    return (
        row["name"],
        row["split"],
        row["dataset"],
        unit.number(row["value"]),
        unit.symbol,
        interval,
        str(row["n"]),
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Names to the left, numbers to the right."""
    name, split, dataset, value, symbol, interval, n = zip(cells, widths, strict=True)
    left = [cell.ljust(width) for cell, width in (name, split, dataset)]
    right = [
        value[0].rjust(value[1]),
        symbol[0].ljust(symbol[1]),
        interval[0].rjust(interval[1]),
        n[0].rjust(n[1]),
    ]
    return "  ".join([*left, " ".join(right[:2]), *right[2:]])


def pivot(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str:
    """Aligned text: a line for each value of `keys`, a column for each metric, in its unit.

    Rows have the keys, name, value, low, high and n; a line shows the n of its first metric.
    """
    names = list(dict.fromkeys(row["name"] for row in rows))
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        line = lines.setdefault(tuple(str(row[key]) for key in keys), {"n": str(row["n"])})
        line[row["name"]] = estimate(row)
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


def splits_table(rows: Sequence[Mapping[str, Any]], out_of_domain: Collection[str] = ()) -> str:
    """Aligned text: a line per model, a column per split, in a block per main metric.

    Rows have model, split, name, value and n. The main metric of a split is the first in METRICS
    that it has. Splits out of domain have blocks of their own. The last line of a block has the
    number of prompts that the metric is over, n.
    """
    splits = dict.fromkeys(row["split"] for row in rows)
    blocks: dict[tuple[str, bool], list[str]] = {}
    for split in splits:
        metric = main_metric([row["name"] for row in rows if row["split"] == split])
        blocks.setdefault((metric, split in out_of_domain), []).append(split)
    return "\n\n".join(
        _splits_block(metric, [row for row in rows if row["name"] == metric], columns, is_outside)
        for (metric, is_outside), columns in blocks.items()
    )


def tasks_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Aligned text: a line per model; for each split a column per task, its main metric.

    Rows as in `splits_table`, with low and high: the 95 % intervals.
    """
    columns = list(dict.fromkeys((row["split"], row["name"]) for row in rows))
    columns = [one for one in columns if one[1] in _mains(rows, one[0])]
    models = list(dict.fromkeys(row["model"] for row in rows))
    cells = {(row["model"], row["split"], row["name"]): row for row in rows}
    lines = [["", *(_task_heading(*one) for one in columns)]]
    for model in models:
        found = [cells.get((model, *one)) for one in columns]
        lines.append([model, *("-" if row is None else estimate(row) for row in found)])
    numbers = [next(row for row in rows if (row["split"], row["name"]) == one) for one in columns]
    lines.append(["n", *(f"{row['n']:,}" for row in numbers)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def has_several_tasks(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether METRICS rows are of tasks with different main metrics, few enough for one table."""
    splits = dict.fromkeys(row["split"] for row in rows)
    columns = [name for split in splits for name in _mains(rows, split)]
    return len(set(columns)) > 1 and len(columns) <= MOST_COLUMNS


def _mains(rows: Sequence[Mapping[str, Any]], split: str) -> list[str]:
    return main_metrics({row["name"] for row in rows if row["split"] == split})


def _task_heading(split: str, name: str) -> str:
    metric = find_metric(name)
    unit = f", {metric.unit.symbol}" if metric.unit.symbol else ""
    better = " (lower is better)" if metric.higher_is_better is False else ""
    return f"{split}: {name}{unit}{better}"


def _splits_block(
    metric: str, rows: Sequence[Mapping[str, Any]], splits: Sequence[str], is_outside: bool
) -> str:
    unit = find_metric(metric).unit
    title = f"{metric}, {unit.symbol}" if unit.symbol else metric
    values = {(row["model"], row["split"]): unit.number(row["value"]) for row in rows}
    counts = {row["split"]: str(row["n"]) for row in rows}
    models = dict.fromkeys(model for model, _ in values)
    lines = [
        [title + " (out of domain)" * is_outside, *splits],
        *([model, *(values.get((model, split), "-") for split in splits)] for model in models),
        ["n", *(counts[split] for split in splits)],
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])])
        for first, *rest in lines
    )


def estimate(row: Mapping[str, Any]) -> str:
    """`61.4 [59.3, 63.5]`: a METRICS row's value and interval in its unit."""
    unit = find_metric(row["name"]).unit
    value, low, high = (unit.number(row[name]) for name in ("value", "low", "high"))
    return value if math.isnan(row["low"]) else f"{value} [{low}, {high}]"
