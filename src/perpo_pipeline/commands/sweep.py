"""`perpo sweep`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perpo_pipeline import advice
from perpo_pipeline.commands.options import Debug, Json, Quiet, Set
from perpo_pipeline.commands.output import print_rows

if TYPE_CHECKING:
    from perpo_pipeline.sweep.results import Row
    from perpo_pipeline.sweep.run_sweep import Sweep


def sweep(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE.yaml...", help=f"files of sweeps ({advice.page('sweeps')})"),
    ],
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="print how much there is to make and about how long it takes"
        ),
    ] = False,
    max_hours: Annotated[
        float | None,
        typer.Option(help="refuse a sweep that would take longer than this"),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(help="calls of stages side by side, each on a GPU of its own"),
    ] = 1,
    figures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="write pictures (SVG) and a page with tables (README.md) there"
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="only the ends of each parameter's values, one method and one seed"
        ),
    ] = False,
    sets: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train and measure many settings, methods and seeds.

    Each cell is a method, a setting and a seed: the ordinary stages of a run. Cells share prompts,
    samples, scores and lists where their settings allow it, also with the run itself, whose results
    in use stay as they are. Each method's setting is chosen on one split and reported on another.
    Stopped or killed, the same command goes on from there. Prints a table and the path of a page.
    Several files share what they make.

    Example: perpo sweep configs/sweeps/demo.yaml --dry-run

    Example: perpo sweep configs/sweeps/demo.yaml

    Example: perpo sweep configs/sweeps/demo.yaml --jobs 8

    Example: perpo sweep configs/sweeps/demo.yaml --set train.epochs=2 --max-hours 8

    Example: perpo sweep configs/sweeps/ci.yaml configs/sweeps/demo.yaml --figures data/figures
    """
    from perpo_pipeline.config.overrides import parse_set
    from perpo_pipeline.run import Console
    from perpo_pipeline.store.schemas import SEED_DIFFERENCES
    from perpo_pipeline.sweep.artifact import PAGE
    from perpo_pipeline.sweep.figures_folder import INDEX, check_folder
    from perpo_pipeline.sweep.run_sweep import open_sweeps, plan_sweeps, run_sweeps
    from perpo_pipeline.sweep.table import sweep_table

    opened = open_sweeps(files, [*map(parse_set, sets or ())], is_quick=quick)
    if figures is not None:
        check_folder(figures, [(one.file, one.cells[0].config.run) for one in opened])
    if dry_run:
        print(plan_sweeps(opened, jobs))
        return
    finished = []
    for one, made in run_sweeps(opened, Console(quiet), jobs=jobs, max_hours=max_hours):
        rows = made.table().to_pylist()
        differences = made.table(SEED_DIFFERENCES.name).to_pylist()
        table = partial(sweep_table, differences=differences)
        print_rows([{"sweep": one.name, **row} for row in rows], table, as_json)
        if not as_json:
            print(made.path / PAGE, flush=True)
        finished.append((one, rows, differences))
        if figures is not None:
            _draw(figures, finished)
    if figures is not None and not as_json:
        print(figures / INDEX)


def _draw(folder: Path, finished: "Sequence[tuple[Sweep, list[Row], list[Row]]]") -> None:
    """Write the figures of all sweeps so far: the first are there long before the last."""
    from perpo_pipeline.sweep.figures import Finished, write_figures  # imports Matplotlib

    write_figures(
        folder,
        [
            Finished(one.file, one.cells, rows, differences, one.is_quick)
            for one, rows, differences in finished
        ],
    )
