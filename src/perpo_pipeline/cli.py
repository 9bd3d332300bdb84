"""The command line: `perpo COMMAND`; the commands are in commands/.

Heavy imports happen only inside the command that runs.
"""

import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from perpo_pipeline import __version__, advice, bars
from perpo_pipeline.commands.ask import ask
from perpo_pipeline.commands.browse import browse
from perpo_pipeline.commands.compare import compare
from perpo_pipeline.commands.doctor import doctor
from perpo_pipeline.commands.evaluate import eval_command
from perpo_pipeline.commands.export import export
from perpo_pipeline.commands.filter import filter_command
from perpo_pipeline.commands.gc import gc
from perpo_pipeline.commands.help_text import GroupedCommands, use
from perpo_pipeline.commands.init import init
from perpo_pipeline.commands.inspect import inspect
from perpo_pipeline.commands.iterate import iterate
from perpo_pipeline.commands.judge import judge_app
from perpo_pipeline.commands.make_rules import make_rules
from perpo_pipeline.commands.measure import measure_app
from perpo_pipeline.commands.merge import merge
from perpo_pipeline.commands.path import path
from perpo_pipeline.commands.plan import plan
from perpo_pipeline.commands.prepare import prepare
from perpo_pipeline.commands.removed import check_removed
from perpo_pipeline.commands.report import report
from perpo_pipeline.commands.run import run_command
from perpo_pipeline.commands.sample import sample
from perpo_pipeline.commands.score import score
from perpo_pipeline.commands.settings import settings
from perpo_pipeline.commands.status import status
from perpo_pipeline.commands.sweep import sweep
from perpo_pipeline.commands.train import train
from perpo_pipeline.errors import PerpoError, Stopped, of_the_system
from perpo_pipeline.interrupts import signal_of, sigterm_like_ctrl_c
from perpo_pipeline.machine import collect_garbage_less_often, wait_passively
from perpo_pipeline.train.launch import LAUNCHED, write_failure

EXIT_BUG, EXIT_USER_ERROR, EXIT_INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="perpo",
    cls=GroupedCommands,
    help="Align a vision-language model with what is in the image (PerPO, arXiv:2502.04371).\n\n"
    "A run is described by one YAML file. Each stage reads its section of the file and what the "
    "stages before it wrote, and does nothing if its result is there already. `perpo COMMAND "
    "--help` explains a command; `perpo settings` lists all settings.\n\n"
    "Example: perpo sample --config configs/demo.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(prepare)
app.command()(sample)
app.command()(score)
app.command(name="filter")(filter_command)
app.command()(train)
app.command(name="eval")(eval_command)
app.command()(report)
app.command()(init)
app.command(name="run")(run_command)
app.command()(sweep)
app.command()(iterate)
app.add_typer(measure_app, name="measure")
app.command()(browse)
app.command()(ask)
app.command()(compare)
app.add_typer(judge_app, name="judge")
app.command()(merge)
app.command()(export)
app.command()(status)
app.command()(settings)
app.command()(path)
app.command()(inspect)
app.command(hidden=True)(make_rules)
app.command()(plan)
app.command()(doctor)
app.command()(gc)
use(app)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"perpo {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="print the version and exit"
        ),
    ] = False,
) -> None:
    pass


def main(argv: list[str] | None = None) -> None:
    """Run the command line; a user's error is one message and exit code 2."""
    _escape_what_cannot_be_printed()
    wait_passively()
    collect_garbage_less_often()
    arguments = sys.argv[1:] if argv is None else argv
    command: Callable[..., Any] = app
    advice.begin(arguments)
    try:
        with sigterm_like_ctrl_c():
            check_removed(arguments)
            command(args=arguments, obj=arguments)
    except Stopped as stopped:
        _exit_stopped(stopped)
    except PerpoError as error:
        _exit_with(error, arguments)
    except OSError as error:
        explained = of_the_system(error)
        if explained is None:
            raise
        _exit_with(explained, arguments)
    except SystemExit as ended:  # typer turns Ctrl-C into this
        if ended.code != EXIT_INTERRUPTED:
            raise
        _exit_stopped(Stopped("interrupted; run the same command to resume", signal_of(ended)))


def _exit_with(error: PerpoError, arguments: list[str]) -> NoReturn:
    if "--debug" in arguments:
        traceback.print_exc()
    _print(error, f"perpo: error: {_with_folder(error)}")
    sys.exit(EXIT_USER_ERROR)


def _exit_stopped(stopped: Stopped) -> NoReturn:
    _print(stopped, f"perpo: {stopped}")
    sys.exit(stopped.exit_code)


def _escape_what_cannot_be_printed() -> None:
    """Print `\\xe9` where the terminal's encoding lacks é: user's text must not end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _with_folder(error: PerpoError) -> PerpoError:
    """The error, its place with the folder that a relative path is relative to."""
    what, where, fix = error.parts()
    return PerpoError(what, where=where and advice.with_folder(where), fix=fix)


def _print(error: PerpoError | Stopped, message: str) -> None:
    """Print the message, or leave it for the parent of several processes to print once."""
    bars.close_all()
    if LAUNCHED in os.environ and write_failure(error):
        return
    print(message, file=sys.stderr)


if __name__ == "__main__":
    main()
