"""Commands that start their own Ray cluster, and the actors below them."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import psutil

ACTOR = "ray::MapWorker"
# Ray gives its workers the lowest priorities (15), with which they hardly run beside other tests.
NICENESS = {"RAY_worker_niceness": "0"}


class Driver(Protocol):
    """The command that has started the cluster."""

    def poll(self) -> int | None: ...


def without_cluster() -> dict[str, str]:
    """The environment without the variables that name a cluster to join."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return own | NICENESS


def command_of(process: psutil.Process) -> str:
    """The command line of a process; empty if it has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def processes_below(process: psutil.Process) -> list[psutil.Process]:
    """Its children and theirs; none if it has ended."""
    with suppress(psutil.Error):
        return [one for one in process.children(recursive=True) if one.is_running()]
    return []


def actors_of(driver: int) -> list[psutil.Process]:
    """The actor processes of the cluster that a command has started."""
    with suppress(psutil.Error):
        below = processes_below(psutil.Process(driver))
        return [process for process in below if command_of(process).startswith(ACTOR)]
    return []


def wait_until(condition: Callable[[], object], driver: Driver, patience_s: float) -> None:
    """Wait until the condition holds, while the command runs."""
    end = time.monotonic() + patience_s
    while not condition():
        assert driver.poll() is None, "the command ended before that"
        assert time.monotonic() < end
        time.sleep(0.02)
