"""The installed lmms-eval: where it is, which version, how it is started.

It runs in a process of its own and may live in an environment of its own: its requirements
(wandb 0.25, av below 16) exclude some that perpo is locked to.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perpo_pipeline.errors import ConfigError, MissingDependencyError, ProcessError

PYTHON = "PERPO_LMMS_EVAL_PYTHON"
FIND_VERSION = "import importlib.metadata as m; print(m.version('lmms_eval'))"
INSTALL = (
    "python -m venv lmms-eval; lmms-eval/bin/pip install lmms-eval decord; then give "
    f"--harness-python lmms-eval/bin/python, or set {PYTHON}"
)
MODEL_ARGS = "--model_args"
OURS = ("--model", "--tasks", "--output_path", "--log_samples", "--config", "--predict_only", "-x")
SHOWN_LINES = 5


@dataclass(frozen=True)
class LmmsEval:
    """An installed lmms-eval."""

    python: str
    version: str

    def run(self, arguments: Sequence[str], log: Path) -> None:
        """Run it; all that it prints goes to `log`. Raises ProcessError if it fails.

        lmms-eval ends with exit code 0 after an error, too: the caller looks for its results.
        """
        command = [self.python, "-m", "lmms_eval", *arguments]
        with log.open("wb") as sink:
            sink.write(f"$ {shlex.join(command)}\n".encode())
            sink.flush()
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, check=False
            )
        if done.returncode:
            raise failed(log, f"exit code {done.returncode}")


def failed(log: Path, how: str) -> ProcessError:
    """The error for a run without results, with the last lines of its output."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    written = [line.strip() for line in lines if line.strip()]
    last = [line for line in written if "Error" in line][-1:] or written[-SHOWN_LINES:]
    return ProcessError(
        f"lmms-eval wrote no results ({how}): {' | '.join(last)[-600:]}",
        where=str(log),
        fix="read its output there; then run the same command: finished tasks are not run again",
    )


def find_lmms_eval(python: str | None) -> LmmsEval:
    """The lmms-eval of `python`, of $PERPO_LMMS_EVAL_PYTHON, or of this environment.

    Raises MissingDependencyError if it is not installed there, ConfigError if there is no such
    program.
    """
    chosen = python or os.environ.get(PYTHON) or sys.executable
    try:
        found = subprocess.run(
            [chosen, "-c", FIND_VERSION], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise ConfigError(
            f"cannot be started: {error.strerror}",
            where=chosen,
            fix="give the python of the environment that lmms-eval is installed in",
        ) from error
    if found.returncode:
        raise MissingDependencyError("lmms-eval is not installed", where=chosen, fix=INSTALL)
    return LmmsEval(chosen, found.stdout.strip())


def read_arguments(text: str) -> tuple[list[str], list[str]]:
    """(further model arguments, other arguments) of --harness-args.

    Raises ConfigError for arguments that perpo itself gives.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--harness-args: {error}", fix="close the quotes") from error
    model: list[str] = []
    others: list[str] = []
    flags = iter(words)
    for word in flags:
        name, _, value = word.partition("=")
        if name in OURS:
            raise ConfigError(
                f"--harness-args: perpo gives {name} itself",
                fix="choose models with --evaluation, tasks with --tasks",
            )
        if name == MODEL_ARGS:
            model.append(value or next(flags, ""))
        else:
            others.append(word)
    return model, others
