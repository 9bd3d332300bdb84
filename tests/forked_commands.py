"""Run `perpo` commands in processes forked from one that has imported torch and transformers.

In a new Python these imports take five seconds of processor time per command, in a forked one none.
"""

import multiprocessing
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

PRELOADED = ("perpo_pipeline.cli", "perpo_pipeline.sample.transformers_backend", "pyarrow.parquet")


class ForkedCommand:
    """A running command, with the part of `subprocess.Popen` that tests need."""

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        out: Path,
        err: Path,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*PRELOADED])
        given = (list(arguments), str(folder), dict(environment), str(out), str(err))
        self.process = context.Process(target=run_command, args=given)
        self.process.start()
        assert self.process.pid is not None
        self.pid: int = self.process.pid

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, after the command has ended."""
        self.process.join(timeout)
        code = self.process.exitcode
        assert code is not None, f"the command runs for more than {timeout} s"
        return code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def run_command(
    arguments: list[str], folder: str, environment: dict[str, str], out: str, err: str
) -> None:
    """Run in the forked process: take over folder, environment and streams, then call the CLI."""
    import torch

    from perpo_pipeline import cli

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for path, stream in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
        os.close(file)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", "1")))
    cli.main(arguments)
