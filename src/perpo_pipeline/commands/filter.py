"""`perpo filter`."""

from typing import Annotated

import typer

from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    AllowStale,
    Config,
    Debug,
    Out,
    Quiet,
    RunName,
    Samples,
    Scores,
    Set,
    open_run,
)
from perpo_pipeline.commands.output import print_paths


def filter_command(
    config: Config = DEFAULT_CONFIG,
    scores: Scores = None,
    samples: Samples = None,
    min_margin: Annotated[
        float | None,
        typer.Option(help="keep lists whose rewards span at least this much (filter.min_margin)"),
    ] = None,
    max_lists: Annotated[
        int | None, typer.Option(help="keep at most this many lists (filter.max_lists)")
    ] = None,
    sets: Set = None,
    run: RunName = None,
    out: Out = None,
    allow_stale: AllowStale = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Keep the lists with a wide margin between their rewards.

    A list is all samples of one prompt; its margin is the best reward minus the worst. Reads scores
    and samples, and writes preferences: the kept lists, and beside them the dropped ones, each with
    the reason.

    Example: perpo filter --config configs/demo.yaml --min-margin 0.6

    Example: perpo filter --config configs/demo.yaml --set filter.strategy=m3po
    """
    from perpo_pipeline.config.overrides import Override
    from perpo_pipeline.filter.filter_lists import filter_lists

    settings = [
        Override("filter.min_margin", min_margin, "--min-margin"),
        Override("filter.max_lists", max_lists, "--max-lists"),
    ]
    opened = open_run(
        config,
        sets,
        run=run,
        out=out,
        quiet=quiet,
        allow_stale=allow_stale,
        settings=settings,
        inputs={"scores": scores, "samples": samples},
    )
    print_paths([filter_lists(opened, opened.config.sample.split)])
