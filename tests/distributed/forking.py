"""`perpo train` whose processes are forked from the command, which has imported everything.

torchrun starts them as ever, with their environments and in sessions of their own. What is spared
is a new Python for each, which takes eight seconds of processor time for its imports.
"""

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from distributed import poisoning
from forked_commands import Started, make_threads_anew

from perpo_pipeline import cli
from perpo_pipeline.interrupts import SIGNALS
from perpo_pipeline.train.launch import MODULE, OUR_SIGNALS


class Forked(Started):
    """A process that trains, with the part of `Popen` that torchrun needs."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("fork")
        super().__init__(context.Process(target=_train, args=(arguments, environment)))

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, after the process has ended."""
        self.process.join(timeout)
        if (code := self.poll()) is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired("perpo train", timeout)
        return code


def name(rank: int | str) -> str:
    """The name of a forked process, for the system keeps no environment of it."""
    return f"rank {rank}"


def perpo(arguments: Sequence[str]) -> None:
    """Run `perpo`; the processes that it starts with torchrun are forked from this one."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    def start(self: Any, command: Sequence[str], environment: Mapping[str, str]) -> Forked:
        module = command.index("-m")
        assert command[module + 1] == MODULE, command
        return Forked(command[module + 2 :], environment)

    with patch.object(SubprocessHandler, "_popen", start):
        cli.main([*arguments])


def _train(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """What a new Python would do, after what the system does for a new program."""
    os.setsid()
    Path("/proc/self/comm").write_text(name(environment["RANK"]))
    for number in (*SIGNALS, *(signal.Signals[name] for name in OUR_SIGNALS.split(","))):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    make_threads_anew(environment)
    if what := environment.get("POISON"):
        poisoning.poison(what)
    cli.main([*arguments])
