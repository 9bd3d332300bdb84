"""Trainings whose processes are forked from the command, which has imported everything.

torchrun starts them as ever, with their environments and in sessions of their own. What is spared
is a new Python for each, which takes eight seconds of processor time for its imports.
"""

import importlib
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from distributed import poisoning, sharded
from forked_commands import Started, make_threads_anew

from perpo_pipeline import cli
from perpo_pipeline.interrupts import SIGNALS
from perpo_pipeline.train.launch import MODULE, OUR_SIGNALS

SHARDED = str(Path(sharded.__file__))


class Forked(Started):
    """A process that trains, with the part of `Popen` that torchrun needs."""

    def __init__(self, work: Callable[[], None], environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("fork")
        super().__init__(context.Process(target=_begin, args=(work, environment)))

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

    def work(command: Sequence[str]) -> Callable[[], None]:
        module = command.index("-m")
        assert command[module + 1] == MODULE, command
        return lambda: cli.main([*command[module + 2 :]])

    with _forking(work):
        cli.main([*arguments])


def compare_sharded(cases: Sequence[str]) -> None:
    """Run sharded.py with torchrun in two processes that are forked from this one."""
    torchrun: Any = importlib.import_module("torch.distributed.run")
    with _forking(lambda command: lambda: sharded.main(*command[command.index(SHARDED) + 1 :])):
        torchrun.main(["--standalone", "--nproc-per-node", "2", SHARDED, *cases])


@contextmanager
def _forking(work: Callable[[Sequence[str]], Callable[[], None]]) -> Iterator[None]:
    """Let torchrun fork its processes, which do the `work` of the command that it would start."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    def start(self: Any, command: Sequence[str], environment: Mapping[str, str]) -> Forked:
        return Forked(work(command), environment)

    with patch.object(SubprocessHandler, "_popen", start):
        yield


def _begin(work: Callable[[], None], environment: Mapping[str, str]) -> None:
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
    work()
