"""Run a command that gets a signal at a chosen moment, in a process of its own."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forked_commands import ForkedCommand


def perpo_with_signal(
    *arguments: str,
    folder: Path,
    number: int = 0,
    calls: int = -1,
    patience_s: float = 30.0,
    to_group: bool = False,
) -> tuple[int, str]:
    """The exit code and stderr of `perpo`; signal `number` comes after `calls` calls or steps.

    Finished calls wait for `patience_s` before they are written together. With `to_group` all
    processes of the command get the signal, as they do from a terminal.
    """
    return forked(
        _run_with_signal, [[*arguments], number, calls, patience_s, to_group], folder=folder
    )


def forked(function: Callable[..., None], arguments: list[Any], *, folder: Path) -> tuple[int, str]:
    """The exit code and stderr of a function that runs in a process of its own, in `folder`."""
    out, err = folder / "out", folder / "err"
    command = ForkedCommand(
        function, arguments, folder=folder, environment=os.environ, out=out, err=err
    )
    return command.wait(180), err.read_text()


def _run_with_signal(
    arguments: list[str], number: int, calls: int, patience_s: float, to_group: bool
) -> None:
    """Run `perpo`; the signal comes as the backend's call, or the step, after `calls` begins."""
    from perpo_pipeline import cli
    from perpo_pipeline.inference import journal, processes
    from perpo_pipeline.inference.part_sampler import PartSampler
    from perpo_pipeline.train import reference
    from perpo_pipeline.train.trainer import ListTrainer

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    reference.LISTS_PER_CALL = 2
    journal.FLUSH_S = patience_s
    seen: list[int] = []

    def before(real: Any) -> Any:
        def counted(*arguments: Any) -> Any:
            seen.append(1)
            if len(seen) == calls + 1:
                os.kill(os.getpid(), number)
            return real(*arguments)

        return counted

    if to_group:  # as a terminal does; the processes that answer are started by then
        os.setpgid(0, 0)
        processes.POLL_S = 0.005  # else they may have finished before their calls are counted
        add = journal.Journal.add

        def added(*arguments: Any) -> None:
            add(*arguments)
            seen.append(1)
            if len(seen) == calls:
                os.killpg(0, number)

        journal.Journal.add = added  # type: ignore[method-assign]
    else:
        PartSampler._sample_call = before(PartSampler._sample_call)  # type: ignore[method-assign]
        reference.reference_logps = before(reference.reference_logps)
        ListTrainer.training_step = before(ListTrainer.training_step)  # type: ignore[method-assign]
    cli.main(arguments)
