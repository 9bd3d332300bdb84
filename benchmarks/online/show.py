"""The result: a row per way and checkpoint, the differences to PerPO, and the curves."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from perpo_pipeline.evaluate.metrics import METRICS
from perpo_pipeline.evaluate.statistics import paired_difference_interval

Row = dict[str, Any]


def table(rows: Sequence[Row], metric: str) -> Iterator[str]:
    """Markdown lines; each difference is paired over the test prompts, to the last row of PerPO."""
    label = METRICS[metric].label
    yield (
        f"| way | chosen setting | processor s | samples drawn | {label} "
        "| PerPO's last row minus this |"
    )
    yield "|---|---|---|---|---|---|"
    for row in rows:
        value = interval(row["value"], row["low"], row["high"], metric)
        yield (
            f"| {row['label']} | {row['setting']} | {row['cpu_s']:,.0f} | {row['samples']:,} | "
            f"{value} | {row['difference']} |"
        )


def with_differences(rows: Sequence[Row], metric: str) -> list[Row]:
    """The rows with the difference of PerPO's last row to each, as text and as numbers."""
    last = [row for row in rows if row["way"] == "perpo"][-1]
    found = []
    for row in rows:
        if row is last:
            found.append(row | {"difference": "-", "minus": None})
            continue
        minus = paired_difference_interval(last["values"], row["values"])
        found.append(row | {"difference": interval(*minus, metric, sign="+"), "minus": minus})
    return found


def interval(value: float, low: float, high: float, metric: str, sign: str = "") -> str:
    """A value with its 95 % interval, in the metric's own unit: per cent."""
    factor = METRICS[metric].unit.factor
    one, two, three = (f"{factor * number:{sign}.1f}" for number in (value, low, high))
    return f"{one} [{two}, {three}]"


def draw(rows: Sequence[Row], metric: str, path: Path) -> None:
    """The curves of rows, the base's first: the metric against processor seconds and samples."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    factor = METRICS[metric].unit.factor
    for axes, column, title in (
        (left, "cpu_s", "processor seconds"),
        (right, "samples", "samples drawn"),
    ):
        base = factor * rows[0]["value"]
        axes.axhline(base, color="#5b6470", linestyle="--", linewidth=1.2, label="base")
        for name in dict.fromkeys(row["way"] for row in rows[1:]):
            own = [row for row in rows if row["way"] == name]
            values = [factor * row["value"] for row in own]
            errors = [
                [factor * abs(row[bound] - row["value"]) for row in own]
                for bound in ("low", "high")
            ]
            axes.errorbar(
                [row[column] for row in own],
                values,
                yerr=errors,
                marker="o",
                markersize=4,
                capsize=2,
                linewidth=1.5,
                color=own[0]["colour"],
                label=own[0]["label"],
            )
        axes.set_xlabel(title)
        axes.grid(color="#eef0f3")
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel(f"{METRICS[metric].label} (test, 95 % intervals)")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path)
