"""The command line: `perpo COMMAND`; the commands are in commands/.

Heavy imports happen only inside the command that runs.
"""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer

from perpo_pipeline.commands import evaluate, judge, lists, look, merge, prepare, train
from perpo_pipeline.errors import PerpoError, Stopped
from perpo_pipeline.train.launch import LAUNCHED, write_failure

EXIT_BUG, EXIT_USER_ERROR, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 130, 143

app = typer.Typer(
    name="perpo",
    help="Align a vision-language model with what is in the image (PerPO, arXiv:2502.04371).\n\n"
    "Stages: prepare, sample, score, filter, train, eval, report; each reads its section of one "
    "YAML file and the artifacts of the stage before it.\n\n"
    "Example: perpo sample --config configs/demo.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(prepare.prepare)
app.command()(lists.sample)
app.command()(lists.score)
app.command(name="filter")(lists.filter_command)
app.command()(train.train)
app.command(name="eval")(evaluate.eval_command)
app.command()(evaluate.compare)
app.add_typer(judge.judge_app, name="judge")
app.command()(merge.merge)
app.command()(look.report)
app.command()(look.inspect)
app.command()(look.doctor)
app.command()(look.gc)
app.command(hidden=True)(look.plan)


def main(argv: list[str] | None = None) -> None:
    """Run the command line; a user's error is one message and exit code 2."""
    arguments = sys.argv[1:] if argv is None else argv
    command: Callable[..., Any] = app
    try:
        command(args=arguments, obj=arguments)
    except Stopped as stopped:
        _tell(stopped, f"perpo: {stopped}")
        sys.exit(EXIT_TERMINATED)
    except PerpoError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        _tell(error, f"perpo: error: {error}")
        sys.exit(EXIT_USER_ERROR)
    except SystemExit as ended:  # typer has turned Ctrl-C into this
        if ended.code == EXIT_INTERRUPTED:
            print("perpo: interrupted; the same command goes on from here", file=sys.stderr)
        raise


def _tell(error: PerpoError | Stopped, message: str) -> None:
    """Print the message, or leave it for the parent of several processes to print once."""
    if LAUNCHED in os.environ and write_failure(error):
        return
    print(message, file=sys.stderr)


if __name__ == "__main__":
    main()
