"""`perpo sweep`."""

from pathlib import Path
from typing import Annotated

import typer

from perpo_pipeline.commands.options import Debug, Json, Quiet, Set
from perpo_pipeline.commands.output import print_rows


def sweep(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.yaml", help="the sweep's file (docs/sweeps.md)")
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

    Example: perpo sweep configs/sweeps/demo.yaml --dry-run

    Example: perpo sweep configs/sweeps/demo.yaml

    Example: perpo sweep configs/sweeps/demo.yaml --jobs 8

    Example: perpo sweep configs/sweeps/demo.yaml --set train.epochs=2 --max-hours 8
    """
    from perpo_pipeline.config.overrides import parse_set
    from perpo_pipeline.run import Console
    from perpo_pipeline.store.schemas import SEED_DIFFERENCES
    from perpo_pipeline.sweep.run_sweep import PAGE, open_sweep, plan_sweep, run_sweep
    from perpo_pipeline.sweep.table import sweep_table

    opened = open_sweep(file, [*map(parse_set, sets or ())])
    if dry_run:
        print(plan_sweep(opened))
        return
    made = run_sweep(opened, Console(quiet), jobs=jobs, max_hours=max_hours)
    differences = made.table(SEED_DIFFERENCES.name).to_pylist()
    print_rows(made.table().to_pylist(), lambda rows: sweep_table(rows, differences), as_json)
    if not as_json:
        print(made.path / PAGE)
