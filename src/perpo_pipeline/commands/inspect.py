"""`perpo inspect`."""

from pathlib import Path
from typing import Annotated

import typer

from perpo_pipeline.commands.options import Debug


def inspect(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="an artifact, or one version of it")
    ],
    rows: Annotated[int, typer.Option(help="number of rows to show")] = 3,
    verify: Annotated[
        bool, typer.Option("--verify", help="check the sha256 of every file")
    ] = False,
    debug: Debug = False,
) -> None:
    """Print an artifact: lineage, settings and a few rows.

    Also prints the number of rows, the schema version and what was dropped.

    Example: perpo inspect data/demo/preferences/train

    Example: perpo inspect data/demo/samples/train --rows 1 --verify
    """
    from perpo_pipeline.store.inspect import describe

    print(describe(directory, rows=rows, verify=verify))
