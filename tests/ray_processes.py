"""Commands that start a Ray cluster of their own, and the actors below them."""

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

ACTOR = "ray::MapWorker"


def without_cluster() -> dict[str, str]:
    """The environment without what names a cluster to join."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def command_of(process: psutil.Process) -> str:
    """Its command line; empty where it has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def processes_below(process: psutil.Process) -> list[psutil.Process]:
    """Those that it has started, and those that they have; none where it has ended."""
    with suppress(psutil.Error):
        return [one for one in process.children(recursive=True) if one.is_running()]
    return []


def actors_of(driver: int) -> list[psutil.Process]:
    """The actor processes of a cluster that a command has started."""
    with suppress(psutil.Error):
        below = processes_below(psutil.Process(driver))
        return [process for process in below if command_of(process).startswith(ACTOR)]
    return []


def wait_until(
    condition: Callable[[], object], driver: "subprocess.Popen[bytes]", patience_s: float
) -> None:
    """Until it holds, while the command runs."""
    end = time.monotonic() + patience_s
    while not condition():
        assert driver.poll() is None, "it ended before that"
        assert time.monotonic() < end
        time.sleep(0.02)
