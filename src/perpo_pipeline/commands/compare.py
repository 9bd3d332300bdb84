"""`perpo compare`."""

from pathlib import Path
from typing import Annotated

import typer

from perpo_pipeline.commands.options import Debug, Json, Quiet
from perpo_pipeline.commands.output import print_rows


def compare(
    better: Annotated[
        Path,
        typer.Argument(help="predictions, or the --out directory of `perpo eval` or `measure`"),
    ],
    worse: Annotated[Path, typer.Argument(help="predictions of another model on the same prompts")],
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
    from perpo_pipeline.run import Console

    versions = [open_predictions(path) for path in (better, worse)]
    rows = compare_versions(*versions, out=out, console=Console(quiet))
    print_rows(rows, comparison_table, as_json)
