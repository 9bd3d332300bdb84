"""Run commands in processes forked from one that has imported what a training needs.

A new Python takes about eight seconds of processor time for these imports, a forked one almost
none. Tests that need more imported add it to PRELOADED, in a conftest.py.
"""

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

HERE = Path(__file__).parent
PRELOADED = ["killing", "perpo_pipeline.inference.transformers_backend"]


class Started:
    """A process of multiprocessing, with what `Popen` has of one."""

    def __init__(self, process: Any) -> None:
        self.process = process
        self.process.start()
        self.pid: int = self.process.pid

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        code: int | None = self.process.exitcode
        return code


class ForkedCommand(Started):
    """A function that runs in a forked process, with the part of `Popen` that tests need.

    The process takes over `folder`, `environment` and the files `out` and `err` first.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: Sequence[Any],
        *,
        folder: Path,
        environment: Mapping[str, str],
        out: Path,
        err: Path,
    ) -> None:
        start_server()
        context = multiprocessing.get_context("forkserver")
        setting = (str(folder), dict(environment), str(out), str(err))
        super().__init__(context.Process(target=_run, args=(function, arguments, *setting)))

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, after the process has ended."""
        self.process.join(timeout)
        code = self.poll()
        assert code is not None, f"the process runs for more than {timeout} s"
        return code

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def start_server() -> None:
    """Start the process from which all others are forked, unless it runs.

    Up to Python 3.12 it does not get `sys.path` from this process, and ignores what it cannot find.
    """
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    with patch.dict(os.environ, PYTHONPATH=path):
        forkserver.set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()


def make_threads_anew(environment: Mapping[str, str]) -> None:
    """Give a forked process threads of its own: those of torch do not outlive a fork.

    Torch makes them anew at their next use, but fails where two threads use them at once, and
    transformers loads weights in several.
    """
    import torch

    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS") or torch.get_num_threads()))


@contextmanager
def forked_processes(method: str = "forkserver") -> Iterator[None]:
    """Let `perpo` fork the processes that answer prompts, where a user's are new Pythons.

    They are forked from the server of this module, or, with "fork", from the process itself: that
    is for one that was forked and has no threads yet.
    """
    get_context = multiprocessing.get_context

    def get(wanted: str | None = None) -> Any:
        return get_context(method if wanted == "spawn" else wanted)

    if method == "forkserver":
        start_server()
    with patch.object(multiprocessing, "get_context", get):
        yield


def start_perpo(
    *arguments: str,
    folder: Path,
    environment: Mapping[str, str],
    out: Path,
    err: Path,
    forks: bool = False,
) -> ForkedCommand:
    """Start `perpo` with these arguments; with `forks`, its processes are forked, too."""
    return ForkedCommand(
        _perpo, [arguments, forks], folder=folder, environment=environment, out=out, err=err
    )


def _perpo(arguments: Sequence[str], forks: bool) -> None:
    from perpo_pipeline import cli

    if forks:  # each of them is one more fork
        os.register_at_fork(after_in_child=lambda: make_threads_anew(os.environ))
    with forked_processes("fork") if forks else nullcontext():
        cli.main(list(arguments))


def _run(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    folder: str,
    environment: dict[str, str],
    out: str,
    err: str,
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for path, stream in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(file, stream)
        os.close(file)
    make_threads_anew(environment)
    gc.freeze()  # its garbage collections need not visit what it was forked with
    function(*arguments)
