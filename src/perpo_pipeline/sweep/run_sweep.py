"""`perpo sweep`: all cells of a file, the chosen settings, and the artifact with the results."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from perpo_pipeline.config.overrides import Override
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.evaluate.metric import Metric
from perpo_pipeline.run import Console, Run
from perpo_pipeline.run import make as make_artifact
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.atomic import write_atomically
from perpo_pipeline.store.schemas import SEED_DIFFERENCES
from perpo_pipeline.store.writing import Recipe, Writer
from perpo_pipeline.sweep.cells import Cell, make_cells
from perpo_pipeline.sweep.edges import at_edge
from perpo_pipeline.sweep.estimate import (
    Estimates,
    check_room,
    check_time,
    dry_run_text,
    total_seconds,
)
from perpo_pipeline.sweep.file import SweepFile, read_sweep
from perpo_pipeline.sweep.make_steps import Made, Progress, find_made, make_missing
from perpo_pipeline.sweep.metric import check_metric, find_metric_of
from perpo_pipeline.sweep.results import (
    Chosen,
    Measured,
    Row,
    choose,
    compare_methods,
    sweep_rows,
)
from perpo_pipeline.sweep.side_by_side import (
    check_jobs,
    make_side_by_side,
    processes_of_trainings,
)
from perpo_pipeline.sweep.steps import Step, make_steps

STAGE_VERSION = 1
PAGE = "sweep.html"


@dataclass(frozen=True)
class Sweep:
    """A sweep's file with all its cells, each measured on the splits of the first round."""

    file: SweepFile
    cells: Sequence[Cell]

    @property
    def name(self) -> str:
        return self.file.sweep

    @property
    def later(self) -> str | None:
        """The split on which only chosen settings are measured; None if there is none."""
        is_all = self.file.report_cells == "all" or self.file.select_on is None
        return None if is_all else self.file.report_on

    @property
    def place(self) -> Path:
        """The folder of the sweep's artifact."""
        return self.cells[0].config.run_dir / "sweep" / self.name

    def first_settings(self) -> dict[str, str]:
        """Each method's first setting: as many as will be chosen."""
        return {cell.method: cell.setting_json for cell in reversed(self.cells)}

    def later_cells(self, chosen: Chosen) -> list[Cell]:
        """The cells of the chosen settings, on the split on which these alone are measured."""
        splits = [] if self.later is None else [self.later]
        return [c.on(splits) for c in self.cells if chosen[c.method] == c.setting_json]


def open_sweep(path: Path, given: Sequence[Override] = ()) -> Sweep:
    """Read a sweep's file and make its cells; raises `ConfigError`, which names the file."""
    file = read_sweep(path)
    try:
        cells = make_cells(file, given)
        check_metric(file, cells[0].config)
    except ConfigError as error:
        where = str(path) if error.where in (None, str(path)) else f"{path}: {error.where}"
        raise ConfigError(error.what, where=where, fix=error.fix) from error
    sweep = Sweep(file, cells)
    splits = [split for split in file.splits if split != sweep.later]
    return Sweep(file, [cell.on(splits) for cell in cells])


def plan_sweep(sweep: Sweep) -> str:
    """What --dry-run prints: how many steps there are, and about how long they take."""
    _, steps, estimates = _begin(sweep)
    return dry_run_text(sweep.name, estimates, steps)


def run_sweep(
    sweep: Sweep, console: Console, *, jobs: int = 1, max_hours: float | None = None
) -> Version:
    """Make what is missing of all cells, choose, report; returns the `sweep` artifact.

    `jobs` steps at a time, each on its own device. Stopped at any moment, the same call goes on
    from there. Raises `ConfigError` where the disk or `max_hours` is too small for what is to come.
    """
    check_jobs(jobs, [cell.config for cell in sweep.cells])
    made, expected, estimates = _begin(sweep)
    todo = [step for step in expected if step.id not in made.versions]
    trainings = sum(step.stage == "train" for step in todo)
    console.say(
        f"sweep {sweep.name}: {len(sweep.cells)} cells, {len(expected)} calls of stages; "
        f"{len(expected) - len(todo)} are finished, {trainings} trainings are to be made"
    )
    processes = max(processes_of_trainings(cell.config) for cell in sweep.cells)
    if trainings and processes > 1:
        console.say(
            f"sweep {sweep.name}: each training runs in one process: train.num_processes "
            f"({processes}) has no effect here; --jobs makes several trainings at a time"
        )
    if todo:
        check_room(estimates.adapter_bytes(todo), sweep.cells[0].config.data_root)
        check_time(total_seconds(estimates, todo), jobs, max_hours)
    steps, last = make_steps(sweep.cells)
    later = [step for step in expected if step.id not in steps]
    progress = Progress(
        sweep.name,
        console,
        len(todo),
        lambda: estimates.seconds_left([*steps.values(), *later]),
        jobs,
    )
    make = partial(_make, made=made, progress=progress, jobs=jobs)
    make([step for step in steps.values() if step.stage == "prepare"])
    metric = find_metric_of(sweep.file, _prompts_of(sweep, steps, made))
    make([*steps.values()])
    measured, chosen = _choose(sweep, last, made, metric)
    if sweep.later is not None:
        selected = sweep.later_cells(chosen)
        chosen_steps, last = make_steps(selected)
        estimates.steps |= chosen_steps
        progress.seconds_left = lambda: estimates.seconds_left(chosen_steps.values())
        find_made(chosen_steps.values(), sweep.name, made)
        make([*chosen_steps.values()])
        measured += _read(selected, last, [sweep.later], made, metric)
    return _write(sweep, console, measured, chosen, metric)


def _begin(sweep: Sweep) -> tuple[Made, list[Step], Estimates]:
    """What is finished, all steps as far as they are known, and what they take.

    Until all cells are measured, the first setting of each method stands for the chosen one.
    """
    steps, last = make_steps(sweep.cells)
    made = Made()
    find_made(steps.values(), sweep.name, made)
    if sweep.later is not None:
        chosen: Chosen = sweep.first_settings()
        if all(id in made.versions for id in last):
            metric = find_metric_of(sweep.file, _prompts_of(sweep, steps, made))
            _, chosen = _choose(sweep, last, made, metric)
        likely, _ = make_steps(sweep.later_cells(chosen))
        find_made(likely.values(), sweep.name, made)
        steps = {**steps, **likely}
    return made, [*steps.values()], Estimates(made, dict(steps))


def _make(steps: Sequence[Step], *, made: Made, progress: Progress, jobs: int) -> None:
    if jobs == 1:
        make_missing(steps, made, progress)
    else:
        make_side_by_side(steps, made, progress, jobs)


def _choose(
    sweep: Sweep, last: Sequence[str], made: Made, metric: Metric
) -> tuple[list[Measured], Chosen]:
    """What the first round measured, and each method's setting that is the best of it."""
    splits = sweep.cells[0].config.eval.splits
    measured = _read(sweep.cells, last, splits, made, metric)
    return measured, choose([one for one in measured if one.split == splits[0]], metric)


def _prompts_of(sweep: Sweep, steps: dict[str, Step], made: Made) -> list[Version]:
    """The prompts of all splits on which something is measured."""
    wanted = [("prompts", split) for split in sweep.cells[0].config.eval.splits]
    found = [made.versions[id].get(key) for id in steps for key in wanted if id in made.versions]
    return [version for version in found if version is not None]


def _read(
    cells: Sequence[Cell], last: Sequence[str], splits: Sequence[str], made: Made, metric: Metric
) -> list[Measured]:
    """Each cell's metrics on each split, split by split."""
    return [
        Measured(cell, split, metric, made.versions[id]["metrics", f"{cell.method}@{split}"])
        for split in splits
        for cell, id in zip(cells, last, strict=True)
    ]


def _write(
    sweep: Sweep,
    console: Console,
    measured: Sequence[Measured],
    chosen: Chosen,
    metric: Metric,
) -> Version:
    """Write the artifact, or find it; prints what to look at."""
    file, run = sweep.file, Run(sweep.cells[0].config, quiet=console.quiet)
    settings = {
        "metric": metric.name,
        "select_on": file.select_on,
        "report_on": file.report_on,
        "report_cells": file.report_cells,
        "cells": [[one.cell.method, one.cell.setting_json, one.cell.seed] for one in measured],
    }
    inputs = {
        f"{n:04d} {one.cell.method}@{one.split}": one.version for n, one in enumerate(measured)
    }
    edges = at_edge(sweep.cells, chosen) if file.select_on is not None else []
    notes = {"chosen": dict(chosen), "at_edge": edges, "file": file.model_dump(mode="json")}
    recipe = Recipe("sweep", sweep.name, "sweep", STAGE_VERSION, settings, inputs, notes)

    def work(writer: Writer) -> None:
        split = file.report_on or file.select_on
        compared = [one for one in measured if one.split == split]
        differences = compare_methods(compared, chosen)
        rows = sweep_rows(measured, chosen)
        html = _page(sweep, metric, rows, differences, edges)
        write_atomically(writer.path / PAGE, lambda sink: sink.write(html.encode()))
        writer.write_part(0, differences, table=SEED_DIFFERENCES.name)
        writer.write_part(0, rows)

    version = make_artifact(run, recipe, work)
    for warning in edges:
        console.say(f"sweep {sweep.name}: warning: {warning}")
    return version


def _page(
    sweep: Sweep,
    metric: Metric,
    rows: Sequence[Row],
    differences: Sequence[Row],
    edges: Sequence[str],
) -> str:
    from perpo_pipeline.sweep.page import sweep_page  # imports Matplotlib

    return sweep_page(sweep.file, sweep.cells, metric, rows, differences, edges)
