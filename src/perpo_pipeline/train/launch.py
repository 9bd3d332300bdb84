"""Start the processes of a training run with torchrun, and report in one message how they ended.

torchrun runs in this process, which is the parent of this node's processes. SIGTERM and Ctrl-C are
passed on to them and not to torchrun, which would kill them after 30 s: they end by themselves
after a step and a checkpoint, however long these take. A terminal's Ctrl-C reaches only this
process, because torchrun starts the others in sessions of their own. If one process fails, torchrun
sends the others SIGTERM, and SIGKILL after 30 s.
"""

import importlib
import json
import os
import shlex
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from perpo_pipeline.errors import (
    ConfigError,
    LostContactError,
    PerpoError,
    ProcessError,
    Stopped,
)
from perpo_pipeline.interrupts import SIGNALS
from perpo_pipeline.machine import cores
from perpo_pipeline.train.processes import placed_by_launcher

LAUNCHED = "PERPO_LAUNCHED"  # set for the processes that this module starts
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
MODULE = "perpo_pipeline.cli"
OUR_SIGNALS = "SIGHUP,SIGQUIT"  # for torchrun; SIGINT and SIGTERM are passed on here
SHUTDOWN_S = 600
Failure = Any  # torch's ProcessFailure


@dataclass(frozen=True)
class Launch:
    """What is started: `num_processes` processes on each of `num_nodes` nodes."""

    num_processes: int
    num_nodes: int = 1
    node_rank: int = 0
    master: str | None = None

    @property
    def world_size(self) -> int:
        """Processes on all nodes."""
        return self.num_processes * self.num_nodes

    def torchrun_arguments(self) -> list[str]:
        """torchrun's arguments for the nodes and processes."""
        if self.num_nodes == 1 and self.master is None:
            place = ["--standalone"]
        else:
            host, _, port = (self.master or "").rpartition(":")
            place = [
                "--nnodes",
                str(self.num_nodes),
                "--node-rank",
                str(self.node_rank),
                "--master-addr",
                host,
                "--master-port",
                port,
            ]
        return [*place, "--nproc-per-node", str(self.num_processes)]


def choose_launch(
    num_processes: int | None,
    num_nodes: int | None,
    node_rank: int | None,
    master: str | None,
    environment: Mapping[str, str],
    configured: int = 1,
) -> Launch | None:
    """The processes that the flags ask for; None if the training runs in this process.

    `configured` is the number on a node without --num-processes. The training runs in this process
    if that is 1, and under torchrun, deepspeed or an srun of several tasks. With --num-nodes, srun
    must have started one task per node. Raises ConfigError for flags that contradict each other or
    the processes that a launcher has started.
    """
    placed = placed_by_launcher(environment)
    if placed is not None and ("RANK" in environment or num_nodes is None):
        wanted = (num_processes or 1) * (num_nodes or 1)
        if num_processes is not None and int(placed["WORLD_SIZE"]) not in (wanted, num_processes):
            raise ConfigError(
                f"a launcher has started {placed['WORLD_SIZE']} processes, but the flags ask for "
                f"{wanted}",
                fix="remove --num-processes and --num-nodes, or the launcher",
            )
        return None
    if placed is not None and int(placed["WORLD_SIZE"]) != num_nodes:
        raise ConfigError(
            f"srun has started {placed['WORLD_SIZE']} tasks, but --num-nodes is {num_nodes}",
            fix="use srun --ntasks-per-node=1: each task starts the processes of its node",
        )
    if node_rank is None and (num_nodes or 1) > 1 and "SLURM_NODEID" not in environment:
        raise ConfigError(
            "--num-nodes needs --node-rank outside SLURM",
            fix="set it to 0 on the node that --master names, and to 1, 2, ... on the others",
        )
    if node_rank is None:
        node_rank = int(environment.get("SLURM_NODEID", "0")) if num_nodes else 0
    _check_flags(num_processes, num_nodes, node_rank, master)
    launch = Launch(num_processes or configured, num_nodes or 1, node_rank, master)
    return launch if launch.world_size > 1 else None


def _check_flags(
    num_processes: int | None, num_nodes: int | None, node_rank: int, master: str | None
) -> None:
    several = (num_nodes or 1) > 1
    faults = []
    if any(number is not None and number < 1 for number in (num_processes, num_nodes)):
        faults.append("--num-processes and --num-nodes must be at least 1")
    if several and (num_processes is None or master is None):
        faults.append("--num-nodes needs --num-processes (per node) and --master HOST:PORT")
    if not 0 <= node_rank < (num_nodes or 1):
        faults.append(f"--node-rank is {node_rank}, but must be from 0 to {(num_nodes or 1) - 1}")
    if master is not None and not _is_address(master):
        faults.append(f"--master is {master!r}, not HOST:PORT")
    if faults:
        raise ConfigError("; ".join(faults), fix="see `perpo train --help`")


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdigit()


def command_line(launch: Launch | None, arguments: Sequence[str]) -> str:
    """The equivalent shell command."""
    if launch is None:
        return shlex.join(["perpo", *arguments])
    # Without `--` torchrun would read our --run as its own. Its 30 s are too short for a large
    # checkpoint.
    waiting = ["--shutdown-timeout", str(SHUTDOWN_S)]
    return shlex.join(
        ["torchrun", *launch.torchrun_arguments(), *waiting, "-m", "--", MODULE, *arguments]
    )


def start(launch: Launch, arguments: Sequence[str]) -> None:
    """Run `perpo ARGUMENTS` in the processes of `launch`; returns when all have succeeded.

    Raises what one of them raised (PerpoError, Stopped), and ProcessError if one was killed or
    failed with a traceback.
    """
    import logging

    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # see `_explained`
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // launch.num_processes)))
    os.environ[LAUNCHED] = "1"
    torchrun: Any = importlib.import_module("torch.distributed.run")
    parsed = torchrun.parse_args(
        [*launch.torchrun_arguments(), "--signals-to-handle", OUR_SIGNALS, "-m", MODULE]
    )
    parsed.training_script_args = list(arguments)  # argparse would misread them
    with _passing_on_signals() as signals:
        try:
            torchrun.run(parsed)
        except SignalException as caught:
            raise KeyboardInterrupt from caught
        except ChildFailedError as caught:
            raise _explained(caught.failures, signals) from None
    if signals:
        name = signal.Signals(signals[0]).name
        raise Stopped(
            f"the processes have ended after {name}, with the training complete", signals[0]
        )


@contextmanager
def _passing_on_signals() -> Iterator[list[int]]:
    """Pass Ctrl-C and SIGTERM on to this node's processes; yields the list of received signals."""
    import psutil

    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        children = psutil.Process().children()
        if not children:
            name = signal.Signals(number).name
            raise Stopped(f"stopped by {name} before a process was started", number)
        for child in children:
            with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_failure(error: PerpoError | Stopped) -> bool:
    """Write the error for the parent process to report; returns whether that succeeded.

    False in a process that `start` did not start, and if the disk of torchrun's own folder (under
    TMPDIR) is full.
    """
    path = os.environ.get(ERROR_FILE)
    if path is None or LAUNCHED not in os.environ:
        return False
    if isinstance(error, PerpoError):
        parts = error.parts()
    else:
        parts = str(error), str(error.number), None
    extra = {"timestamp": str(int(time.time())), "kind": type(error).__name__, "parts": parts}
    try:
        Path(path).write_text(json.dumps({"message": {"message": str(error), "extraInfo": extra}}))
    except OSError:
        Path(path).unlink(missing_ok=True)  # the parent could not read an incomplete file
        return False
    return True


def _explained(failures: Mapping[int, Failure], signals: Sequence[int]) -> Exception:
    """The error to report: the failure that stopped the others, not their reaction to it.

    `signals` were passed on to the processes.
    """
    rank, failure = min(failures.items(), key=lambda item: (_priority(item[1]), item[0]))
    written = _written_failure(failure)
    if written is not None:
        kind, (what, where, fix) = written["kind"], written["parts"]
        if kind == Stopped.__name__:
            return Stopped(what, int(where))
        return ProcessError(
            f"process {rank}: {what}" if kind == LostContactError.__name__ else what,
            where=where,
            fix=fix,
        )
    if signals:
        return Stopped(
            f"stopped by {signal.Signals(signals[0]).name} between checkpoints; the same command "
            "resumes from the last one",
            signals[0],
        )
    if failure.exitcode < 0:
        why = "see its messages above"
        if failure.exitcode == -signal.SIGKILL:
            why = "the system mostly sends SIGKILL when memory runs out"
        return ProcessError(
            f"process {rank} (pid {failure.pid}) was killed by {failure.signal_name()}; the others "
            "were stopped",
            fix=f"{why}; the same command resumes from the last checkpoint",
        )
    return ProcessError(
        f"process {rank} (pid {failure.pid}) failed with exit code {failure.exitcode}, and the "
        "others were stopped; see its messages above",
        fix="the same command resumes from the last checkpoint",
    )


def _priority(failure: Failure) -> int:
    """Report order: a written error, a kill, a stop, a traceback, then mere consequences."""
    written = _written_failure(failure)
    if written is not None and written["kind"] not in (LostContactError.__name__, Stopped.__name__):
        return 0
    # torch ends a process that has lost another one with SIGABRT.
    if failure.exitcode < 0 and failure.exitcode not in (-signal.SIGTERM, -signal.SIGABRT):
        return 1
    if written is not None and written["kind"] == Stopped.__name__:
        return 2
    return 4 if written is not None or failure.exitcode < 0 else 3


def _written_failure(failure: Failure) -> dict[str, Any] | None:
    """What `write_failure` wrote in that process, or None."""
    message = failure.error_file_data.get("message")
    extra = message.get("extraInfo") if isinstance(message, dict) else None
    return extra if isinstance(extra, dict) and "parts" in extra else None
