"""`perpo settings`."""

from typing import Annotated

import typer

from perpo_pipeline.commands.options import Debug


def settings(
    section: Annotated[
        str | None,
        typer.Argument(
            metavar="SECTION",
            help="run, model, prepare, sample, score, filter, train, eval or report; default: all",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Print every setting of a run's YAML file.

    Each has its key, meaning, type and default. The keys are what `--set` accepts.

    Example: perpo settings filter

    Example: perpo settings
    """
    from perpo_pipeline.config.reference import render

    print(render(section))
