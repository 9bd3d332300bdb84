"""`perpo sweep`: all cells of one or more files, the chosen settings, and the artifacts with the
results.

Sweeps of one call share what they make: a step of several is made once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from perpo_pipeline.config.overrides import Override
from perpo_pipeline.errors import ConfigError, PerpoError, ProcessError
from perpo_pipeline.evaluate.metric import Metric
from perpo_pipeline.run import Console
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.sweep.artifact import Results, write_sweep
from perpo_pipeline.sweep.cells import Cell, make_cells, open_base
from perpo_pipeline.sweep.estimate import (
    Estimates,
    check_room,
    check_time,
    dry_run_text,
)
from perpo_pipeline.sweep.file import SweepFile, read_sweep
from perpo_pipeline.sweep.make_steps import Made, Progress, find_made, make_missing
from perpo_pipeline.sweep.metric import check_metric, find_metric_of
from perpo_pipeline.sweep.prompts import check_prompts
from perpo_pipeline.sweep.quick import quick_version
from perpo_pipeline.sweep.results import Chosen, Measured, choose
from perpo_pipeline.sweep.side_by_side import (
    check_jobs,
    make_side_by_side,
    processes_of_trainings,
)
from perpo_pipeline.sweep.steps import Step, make_steps

Steps = dict[str, Step]


@dataclass(frozen=True)
class Sweep:
    """A sweep's file with the cells of its first round, each measured on the splits of this round.

    `further` are the cells of all settings with seeds that choose nothing. Only those of the chosen
    settings are made.
    """

    file: SweepFile
    cells: Sequence[Cell]
    is_quick: bool = False
    further: Sequence[Cell] = ()

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
        """The cells of the chosen settings, on the split on which these alone are measured, with
        the seeds that are reported."""
        splits = [] if self.later is None else [self.later]
        cells = [cell for cell in self.all_cells(chosen) if cell.is_reported]
        return [c.on(splits) for c in cells if chosen[c.method] == c.setting_json]

    def all_cells(self, chosen: Chosen) -> list[Cell]:
        """The cells of both rounds."""
        return [*self.cells, *(c for c in self.further if chosen[c.method] == c.setting_json)]


def open_sweeps(
    paths: Sequence[Path], given: Sequence[Override] = (), *, is_quick: bool = False
) -> list[Sweep]:
    """Read the files of sweeps and make their cells; raises `ConfigError`, which names the file."""
    found: dict[Path, Path] = {}
    sweeps = [_open_sweep(path, given, is_quick) for path in paths]
    for sweep, path in zip(sweeps, paths, strict=True):
        if (other := found.setdefault(sweep.place, path)) is not path:
            raise ConfigError(
                f"the sweep of {other} is called '{sweep.name}', too",
                where=str(path),
                fix="give each sweep of a run a name of its own (`sweep`), and each file once",
            )
    return sweeps


def _open_sweep(path: Path, given: Sequence[Override], is_quick: bool) -> Sweep:
    file = read_sweep(path)
    try:
        if is_quick:
            file = quick_version(file, open_base(file, given)[0])
        cells = make_cells(file, given)
        check_metric(file, cells[0].config)
    except ConfigError as error:
        where = str(path) if error.where in (None, str(path)) else f"{path}: {error.where}"
        raise ConfigError(error.what, where=where, fix=error.fix) from error
    splits = [split for split in file.splits if split != Sweep(file, cells).later]
    first = [cell.on(splits) for cell in cells if cell.chooses]
    return Sweep(file, first, is_quick, [cell for cell in cells if not cell.chooses])


@dataclass
class _Work:
    """What sweeps make together. `steps` are each sweep's, by the folder of its artifact.

    Until all cells of a sweep are measured, the first setting of each method stands for the chosen
    one.
    """

    sweeps: Sequence[Sweep]
    made: Made = field(default_factory=Made)
    steps: dict[Path, Steps] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find what is finished."""
        for sweep in self.sweeps:
            self.steps[sweep.place] = self._expected(sweep)
        self.estimates = Estimates(self.made, self.every())

    def every(self) -> Steps:
        """The steps of all sweeps, each once."""
        return {id: step for steps in self.steps.values() for id, step in steps.items()}

    def missing(self) -> list[Step]:
        """The steps that are to be made."""
        return [step for step in self.every().values() if step.id not in self.made.versions]

    def replace(self, sweep: Sweep, steps: Steps) -> None:
        """The steps of a sweep whose settings are chosen."""
        self.steps[sweep.place] = steps
        self.estimates.steps |= steps

    def seconds_left(self) -> tuple[float, bool]:
        """As `Estimates.seconds_left` of all sweeps."""
        return self.estimates.seconds_left(self.every().values())

    def _expected(self, sweep: Sweep) -> Steps:
        steps, last = make_steps(sweep.cells)
        find_made(steps.values(), sweep.name, self.made)
        if sweep.later is None:
            return steps
        chosen: Chosen = sweep.first_settings()
        if all(id in self.made.versions for id in last):
            metric = find_metric_of(sweep.file, _prompts_of(sweep, steps, self.made))
            _, chosen = _choose(sweep, last, self.made, metric)
        likely, _ = make_steps(sweep.later_cells(chosen))
        find_made(likely.values(), sweep.name, self.made)
        return {**steps, **likely}


def plan_sweeps(sweeps: Sequence[Sweep], jobs: int = 1) -> str:
    """What --dry-run prints: how many steps there are, and about how long they take one by one.

    Raises `ConfigError` for a number of jobs that no machine can have.
    """
    check_jobs(jobs, ())
    work = _Work(sweeps)
    return dry_run_text(_title(sweeps), work.estimates, [*work.every().values()])


def run_sweeps(
    sweeps: Sequence[Sweep], console: Console, *, jobs: int = 1, max_hours: float | None = None
) -> Iterator[tuple[Sweep, Version]]:
    """Of each sweep make what is missing of its cells, choose, and yield the `sweep` artifact.

    `jobs` steps at a time, each on its own device. Stopped at any moment, the same call goes on
    from there. Raises `ConfigError` where the disk or `max_hours` is too small for what is to come.
    One of several sweeps that fails does not stop the others; the error is raised after the last.
    """
    check_jobs(jobs, [cell.config for sweep in sweeps for cell in sweep.cells])
    work = _Work(sweeps)
    todo = work.missing()
    _announce(work, todo, console)
    if todo:
        check_room(work.estimates.adapter_bytes(todo), sweeps[0].cells[0].config.data_root)
    if note := check_time(work.estimates, todo, jobs, max_hours):
        console.say(f"{_title(sweeps)}: {note}")
    number = len(work.every())
    progress = Progress("", console, number, work.seconds_left, jobs, number - len(todo))
    failed = []
    for sweep in sweeps:
        progress.sweep = sweep.name
        try:
            version = _run(sweep, work, progress)
        except PerpoError as error:
            if len(sweeps) == 1:
                raise
            console.say(f"sweep {sweep.name} failed: {error}")
            failed.append(sweep.name)
        else:
            yield sweep, version
    if failed:
        raise ProcessError(
            f"{len(failed)} of {len(sweeps)} sweeps failed: {', '.join(failed)}",
            fix="see the messages above; the same command makes only what is missing of these",
        )


def _announce(work: _Work, todo: Sequence[Step], console: Console) -> None:
    cells = [cell for one in work.sweeps for cell in one.all_cells(one.first_settings())]
    number, trainings = len(work.every()), sum(step.stage == "train" for step in todo)
    console.say(
        f"{_title(work.sweeps)}: {len(cells)} cells, {number} calls of stages; "
        f"{number - len(todo)} are finished, {trainings} trainings are to be made"
    )
    processes = max(processes_of_trainings(cell.config) for cell in cells)
    if trainings and processes > 1:
        console.say(
            f"{_title(work.sweeps)}: each training runs in one process: train.num_processes "
            f"({processes}) has no effect here; --jobs makes several trainings at a time"
        )


def _title(sweeps: Sequence[Sweep]) -> str:
    return f"sweep {sweeps[0].name}" if len(sweeps) == 1 else f"{len(sweeps)} sweeps"


def _run(sweep: Sweep, work: _Work, progress: Progress) -> Version:
    made = work.made
    steps, last = make_steps(sweep.cells)
    make = partial(_make, made=made, progress=progress)
    _prepare(sweep, work.steps[sweep.place], made, make)
    metric = find_metric_of(sweep.file, _prompts_of(sweep, steps, made))
    make([*steps.values()])
    measured, chosen = _choose(sweep, last, made, metric)
    if sweep.later is not None:
        selected = sweep.later_cells(chosen)
        chosen_steps, last = make_steps(selected)
        work.replace(sweep, {**steps, **chosen_steps})
        find_made(chosen_steps.values(), sweep.name, made)
        _prepare(sweep, {**steps, **chosen_steps}, made, make)
        make([*chosen_steps.values()])
        measured += _read(selected, last, [sweep.later], made, metric)
    cells = sweep.all_cells(chosen)
    results = Results(sweep.file, cells, measured, chosen, metric, sweep.is_quick)
    return write_sweep(results, progress.console)


def _prepare(
    sweep: Sweep, steps: Steps, made: Made, make: Callable[[Sequence[Step]], None]
) -> None:
    """Prepare all prompts before anything is made of them, and check those that are measured."""
    prepared = [step for step in steps.values() if step.stage == "prepare"]
    make(prepared)
    found: dict[str, dict[Path, Version]] = {}  # by split and folder
    for step in prepared:
        for (_, split), version in made.versions[step.id].items():
            if split in sweep.file.splits:
                found.setdefault(split, {})[version.path] = version
    allowed = sweep.cells[0].config.eval.allow_train_images
    check_prompts(
        sweep.file, {split: one.values() for split, one in found.items()}, allowed=allowed
    )


def _make(steps: Sequence[Step], *, made: Made, progress: Progress) -> None:
    if progress.jobs == 1:
        make_missing(steps, made, progress)
    else:
        make_side_by_side(steps, made, progress, progress.jobs)


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
