"""Run commands in processes forked from one that has imported torch, transformers and vLLM.

A new Python takes about five seconds of processor time for these imports (with vLLM fifteen), a
forked one almost none.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# `preloaded_vllm` fails with an ImportError without vLLM, which multiprocessing ignores.
PRELOADED = ["killing", "perpo_pipeline.inference.transformers_backend", "preloaded_vllm"]


class ForkedCommand:
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
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        setting = (str(folder), dict(environment), str(out), str(err))
        self.process = context.Process(target=_run, args=(function, arguments, *setting))
        self.process.start()
        assert self.process.pid is not None
        self.pid: int = self.process.pid

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, after the process has ended."""
        self.process.join(timeout)
        code = self.process.exitcode
        assert code is not None, f"the process runs for more than {timeout} s"
        return code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def start_perpo(
    *arguments: str, folder: Path, environment: Mapping[str, str], out: Path, err: Path
) -> ForkedCommand:
    """Start `perpo` with these arguments."""
    return ForkedCommand(
        _perpo, [arguments], folder=folder, environment=environment, out=out, err=err
    )


def _perpo(arguments: Sequence[str]) -> None:
    from perpo_pipeline import cli

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
    if threads := environment.get("OMP_NUM_THREADS"):
        import torch

        torch.set_num_threads(int(threads))
    function(*arguments)
