"""The result of a run in one table: methods by metrics, with the differences to the base."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perpo_pipeline import advice
from perpo_pipeline.config.evaluations import (
    BASE,
    BLANK_IMAGE,
    OTHER_IMAGE,
    Evaluation,
    read_evaluation,
)
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.evaluate.compare import compare_predictions
from perpo_pipeline.evaluate.metric import Metric
from perpo_pipeline.evaluate.metrics import (
    find_metric,
    lower_is_better,
    main_metrics,
    num_prompts,
)
from perpo_pipeline.evaluate.printing import estimate, has_several_tasks, tasks_table
from perpo_pipeline.evaluate.summarise import ALL
from perpo_pipeline.store.artifacts import Version, input_of

COLUMNS = 80
GAP = "  "
DIFFERENCE = "  - base"
Row = Mapping[str, Any]
Column = list[str]  # a heading and a cell per line of the table


@dataclass(frozen=True)
class _Split:
    """One split's METRICS rows by evaluation and metric, and paired differences by model."""

    name: str
    rows: dict[Evaluation, dict[str, Row]]
    differences: dict[str, dict[str, Row]]
    faults: list[str]

    def models(self) -> list[str]:
        return list(dict.fromkeys(one.model for one in self.rows))

    def row(self, model: str, metric: Metric, image: str = "") -> Row | None:
        """The row of one evaluation."""
        return self.rows.get(Evaluation(model, self.name, image), {}).get(metric.name)

    def lines(self) -> list[tuple[str, bool]]:
        """Model, and whether the line has its differences to the base."""
        return [
            (model, is_difference)
            for model in self.models()
            for is_difference in (False, True)
            if not is_difference or model in self.differences
        ]


def result_table(
    metrics: Sequence[Version], *, columns: int = COLUMNS, num_resamples: int = 10_000
) -> str:
    """A block per split, as wide as `columns` at most: a line per model, and its difference to the
    base with the paired 95 % interval below it.

    `metrics` are the `metrics` artifacts of evaluations. The main metrics come first; metrics that
    have no room are left out and counted in the last line. The main metric with other and blank
    images is a column of its own.
    """
    named = [(read_evaluation(version.variant), version) for version in metrics]
    splits = dict.fromkeys(one.split for one, _ in named)
    return "\n\n".join(
        _block(_read([item for item in named if item[0].split == split], num_resamples), columns)
        for split in splits
    )


def rows_of_splits(metrics: Sequence[Version]) -> list[Row]:
    """METRICS rows of whole splits with the right images, each with its model and split."""
    named = [(read_evaluation(version.variant), version) for version in metrics]
    return [
        {**row, "model": one.model, "split": one.split}
        for one, version in named
        if not one.image
        for row in version.table().to_pylist()
        if row["dataset"] == ALL
    ]


def every_task(metrics: Sequence[Version], out_of_domain: Collection[str]) -> str | None:
    """The table of a run's tasks with its title; None if there is one task, or too many columns."""
    rows = rows_of_splits(metrics)
    if out_of_domain or not has_several_tasks(rows):
        return None
    return f"every task, with 95 % intervals:\n{tasks_table(rows)}"


def _read(named: Sequence[tuple[Evaluation, Version]], num_resamples: int) -> _Split:
    rows = {
        one: {row["name"]: row for row in version.table().to_pylist() if row["dataset"] == ALL}
        for one, version in named
    }
    found = _Split(named[0][0].split, rows, {}, [])
    shown = {one.model: version for one, version in named if not one.image}
    if BASE not in shown:
        return found
    base = input_of(shown[BASE], "predictions")
    for model, version in shown.items():
        if model == BASE:
            continue
        try:
            compared = compare_predictions(
                input_of(version, "predictions"), base, num_resamples=num_resamples
            )
        except ArtifactError as error:  # other prompts, or another truth
            found.faults.append(f"{model} - base: {error.what}")
        else:
            found.differences[model] = {row["metric"]: row for row in compared}
    return found


def _block(split: _Split, columns: int) -> str:
    mains = main_metrics({name for rows in split.rows.values() for name in rows})
    title = f"{split.name}, {_prompts(split, mains)}"
    names = [DIFFERENCE if is_difference else model for model, is_difference in split.lines()]
    chosen: list[Column] = [[title, *names]]
    room = columns - _width(chosen[0])
    candidates = _columns(split, mains)
    for column in candidates:
        if (taken := len(GAP) + _width(column)) <= room:
            chosen.append(column)
            room -= taken
    left_out = len(candidates) + 1 - len(chosen)
    paired = "; - base: the paired difference to the base" if split.differences else ""
    notes = [f"[ ]: 95 % interval{paired}"]
    if lower := lower_is_better([column[0].partition(",")[0] for column in chosen[1:]]):
        notes.append(lower)
    if images := _images(split):
        shown = " and ".join(mains)
        notes.append(
            f"{_heading(images)}: {shown} where another prompt's or a blank image is shown"
        )
    notes += split.faults
    if left_out:
        more = f"{left_out} more metric{'s' * (left_out > 1)}"
        notes.append(f"{more}: {advice.command('eval', '--details')}, or --json")
    return "\n".join([*map(_line, zip(*map(_padded, chosen), strict=True)), *notes])


def _prompts(split: _Split, mains: Sequence[str]) -> str:
    """`512 prompts`; where a main metric has fewer, their number: `800 prompts: 400 with ...`."""
    counts: dict[str, int] = {}
    for rows in split.rows.values():
        for name, row in rows.items():
            counts[name] = max(row["n"], counts.get(name, 0))
    every = num_prompts(counts, mains)
    apart = " and ".join(f"{counts[name]:,} with {name}" for name in mains)
    alone = len(mains) == 1 and counts[mains[0]] == every
    return f"{every:,} prompts" + ("" if alone else f": {apart}")


def _columns(split: _Split, mains: Sequence[str]) -> list[Column]:
    """The columns in order: main metrics, the main ones with wrong images, all others."""
    names = list(dict.fromkeys(name for rows in split.rows.values() for name in rows))
    compared = {name for rows in split.differences.values() for name in rows}
    ranked = sorted(names, key=lambda name: (name not in mains, name not in compared))
    first = [name for name in ranked if name in mains or name in compared]
    return [
        *(_column(split, find_metric(name)) for name in first),
        *(_wrong_images(split, find_metric(main)) for main in mains if _images(split)),
        *(_column(split, find_metric(name)) for name in ranked if name not in first),
    ]


def _column(split: _Split, metric: Metric) -> Column:
    heading = f"{metric.name}, {metric.unit.symbol}" if metric.unit.symbol else metric.name
    cells = []
    for model, is_difference in split.lines():
        if is_difference:
            cells.append(_difference(split.differences[model].get(metric.name)))
        else:
            row = split.row(model, metric)
            cells.append("-" if row is None else estimate(row))
    return [heading, *cells]


def _wrong_images(split: _Split, metric: Metric) -> Column:
    """The metric's values with other and with blank images."""
    images = _images(split)
    cells = []
    for model, is_difference in split.lines():
        found = [split.row(model, metric, image) for image in images]
        values = ["-" if row is None else metric.unit.number(row["value"]) for row in found]
        cells.append("" if is_difference else " / ".join(values))
    return [_heading(images), *cells]


def _images(split: _Split) -> list[str]:
    there = {one.image for one in split.rows}
    return [image for image in (OTHER_IMAGE, BLANK_IMAGE) if image in there]


def _heading(images: Sequence[str]) -> str:
    """`other/blank image`"""
    return "/".join(i.removeprefix("-").removesuffix("-image") for i in images) + " image"


def _difference(row: Row | None) -> str:
    if row is None:
        return ""
    unit = find_metric(row["metric"]).unit
    low, high = unit.signed(row["low"]), unit.signed(row["high"])
    return f"{unit.signed(row['difference'])} [{low}, {high}]"


def _width(column: Column) -> int:
    return max(map(len, column))


def _padded(column: Column) -> Column:
    width = _width(column)
    return [cell.ljust(width) for cell in column]


def _line(cells: tuple[str, ...]) -> str:
    return GAP.join(cells).rstrip()
