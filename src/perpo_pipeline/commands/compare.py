"""`perpo compare`."""

from pathlib import Path
from typing import Annotated

import typer

from perpo_pipeline.commands.options import Debug, Json, Quiet
from perpo_pipeline.commands.output import print_rows
from perpo_pipeline.errors import ConfigError


def compare(
    better: Annotated[
        Path,
        typer.Argument(
            metavar="BETTER",
            help="predictions, a harness's scores, or the --out directory of `perpo eval` or "
            "`measure`",
        ),
    ],
    worse: Annotated[
        Path, typer.Argument(metavar="WORSE", help="the same of another model on the same prompts")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="directory to keep the rows in")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare two models prompt by prompt.

    Prints the difference, its 95 % interval and the p-value of each metric. McNemar's exact test is
    used if answers are right or wrong and share no image, otherwise the bootstrap over images.

    Example: perpo compare data/demo/predictions/perpo@test data/demo/predictions/base@test
    """
    from perpo_pipeline.evaluate.compare import compare_versions, comparison_table, open_predictions
    from perpo_pipeline.evaluate.harness.compare_harness import (
        compare_harness_versions,
        find_harness,
    )
    from perpo_pipeline.run import Console

    console = Console(quiet)
    scores = [find_harness(path) for path in (better, worse)]
    if scores[0] is not None and scores[1] is not None:
        rows = compare_harness_versions(scores[0], scores[1], out=out, console=console)
    elif scores[0] is not None or scores[1] is not None:
        named = (better, worse) if scores[0] is not None else (worse, better)
        open_predictions(named[1])
        raise ConfigError(
            f"{named[0]} holds the scores of a harness, {named[1]} does not",
            fix="give the scores of a harness for both models, or predictions for both",
        )
    else:
        versions = [open_predictions(path) for path in (better, worse)]
        rows = compare_versions(*versions, out=out, console=console)
    print_rows(rows, comparison_table, as_json)
