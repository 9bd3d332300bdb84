"""Start the processes of a training run with torchrun, and say in one message how they ended.

torchrun runs inside this process, which is the parent of this node's processes. SIGTERM goes
through to them and to nothing else: they end by themselves, after a step and a checkpoint, however
long these take (torchrun by itself kills after 30 s). Where one of them fails, torchrun stops the
others: at once, and after 30 s for good.
"""

import importlib
import json
import os
import shlex
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from perpo_pipeline.machine import cores
from perpo_pipeline.train.processes import placed_by_launcher

LAUNCHED = "PERPO_LAUNCHED"  # set for the processes that were started here
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
MODULE = "perpo_pipeline.cli"
OUR_SIGNALS = "SIGINT,SIGHUP,SIGQUIT"  # for torchrun; SIGTERM is passed on here
SHUTDOWN_S = 600
Failure = Any  # torch's ProcessFailure


@dataclass(frozen=True)
class Launch:
    """What is started: so many processes on each of `num_nodes` nodes, of which this is one."""

    num_processes: int
    num_nodes: int = 1
    node_rank: int = 0
    master: str | None = None

    @property
    def world_size(self) -> int:
        """Processes on all nodes."""
        return self.num_processes * self.num_nodes

    def torchrun_arguments(self) -> list[str]:
        """Where torchrun starts how many processes."""
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
) -> Launch | None:
    """What the flags ask to be started; None where it runs in this process.

    That is without flags, and under torchrun, deepspeed or an srun of several tasks. With
    --num-nodes an srun is taken to have started one task a node. Raises ConfigError for flags
    that do not fit together, or other processes than a launcher has started.
    """
    placed = placed_by_launcher(environment)
    if placed is not None and ("RANK" in environment or num_nodes is None):
        wanted = (num_processes or 1) * (num_nodes or 1)
        if num_processes is not None and int(placed["WORLD_SIZE"]) not in (wanted, num_processes):
            raise ConfigError(
                f"a launcher has started {placed['WORLD_SIZE']} processes, and the flags ask for "
                f"{wanted}",
                fix="leave out --num-processes and --num-nodes, or the launcher",
            )
        return None
    if placed is not None and int(placed["WORLD_SIZE"]) != num_nodes:
        raise ConfigError(
            f"srun has started {placed['WORLD_SIZE']} tasks, and --num-nodes is {num_nodes}",
            fix="--ntasks-per-node=1: each task starts the processes of its node",
        )
    if node_rank is None and (num_nodes or 1) > 1 and "SLURM_NODEID" not in environment:
        raise ConfigError(
            "--num-nodes needs --node-rank outside SLURM",
            fix="0 on the node that --master names; 1, 2, ... on the others",
        )
    if node_rank is None:
        node_rank = int(environment.get("SLURM_NODEID", "0")) if num_nodes else 0
    _check_flags(num_processes, num_nodes, node_rank, master)
    launch = Launch(num_processes or 1, num_nodes or 1, node_rank, master)
    return launch if launch.world_size > 1 else None


def _check_flags(
    num_processes: int | None, num_nodes: int | None, node_rank: int, master: str | None
) -> None:
    several = (num_nodes or 1) > 1
    faults = []
    if any(number is not None and number < 1 for number in (num_processes, num_nodes)):
        faults.append("--num-processes and --num-nodes are at least 1")
    if several and (num_processes is None or master is None):
        faults.append("--num-nodes needs --num-processes (a node) and --master HOST:PORT")
    if not 0 <= node_rank < (num_nodes or 1):
        faults.append(f"--node-rank is {node_rank}, of {num_nodes or 1} nodes (counted from 0)")
    if master is not None and not _is_address(master):
        faults.append(f"--master is {master!r}, not HOST:PORT")
    if faults:
        raise ConfigError("; ".join(faults), fix="see `perpo train --help`")


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdigit()


def command_line(launch: Launch | None, arguments: Sequence[str]) -> str:
    """The command that does what is started, for a shell."""
    if launch is None:
        return shlex.join(["perpo", *arguments])
    # `--`: torchrun would take our --run for its own. Its 30 s are too few for a large checkpoint.
    waiting = ["--shutdown-timeout", str(SHUTDOWN_S)]
    return shlex.join(
        ["torchrun", *launch.torchrun_arguments(), *waiting, "-m", "--", MODULE, *arguments]
    )


def start(launch: Launch, arguments: Sequence[str]) -> None:
    """Run `perpo ARGUMENTS` in the processes of `launch`; returns when all have ended well.

    Raises what one of them raised (PerpoError, Stopped), ProcessError where one was killed or
    failed with a traceback.
    """
    import logging

    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # told below
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // launch.num_processes)))
    os.environ[LAUNCHED] = "1"
    torchrun: Any = importlib.import_module("torch.distributed.run")
    parsed = torchrun.parse_args(
        [*launch.torchrun_arguments(), "--signals-to-handle", OUR_SIGNALS, "-m", MODULE]
    )
    parsed.training_script_args = list(arguments)  # not read by argparse, which would mistake them
    with _passing_on_sigterm() as told:
        try:
            torchrun.run(parsed)
        except SignalException as caught:
            raise KeyboardInterrupt from caught
        except ChildFailedError as caught:
            raise _explained(caught.failures, was_told=bool(told)) from None
    if told:
        raise Stopped("the processes have ended after SIGTERM; the work was done by then")


@contextmanager
def _passing_on_sigterm() -> Iterator[list[int]]:
    """Pass SIGTERM on to this node's processes; gives the signals that came."""
    import psutil

    told: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        children = psutil.Process().children()
        if not children:
            raise Stopped("stopped by SIGTERM before a process was started")
        for child in children:
            child.send_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


def write_failure(error: PerpoError | Stopped) -> bool:
    """In a process that `start` has started: leave the error for the parent to tell; else False.

    False also where the disk of torchrun's own folder (under TMPDIR) has no room for it.
    """
    path = os.environ.get(ERROR_FILE)
    if path is None or LAUNCHED not in os.environ:
        return False
    parts = error.parts() if isinstance(error, PerpoError) else (str(error), None, None)
    extra = {"timestamp": str(int(time.time())), "kind": type(error).__name__, "parts": parts}
    try:
        Path(path).write_text(json.dumps({"message": {"message": str(error), "extraInfo": extra}}))
    except OSError:
        Path(path).unlink(missing_ok=True)  # the parent could not read a part of it
        return False
    return True


def _explained(failures: Mapping[int, Failure], *, was_told: bool) -> Exception:
    """The failure that tells most: what stopped the others, not what they said of that."""
    rank, failure = min(failures.items(), key=lambda item: (_place(item[1]), item[0]))
    left = _left_behind(failure)
    if left is not None:
        kind, (what, where, fix) = left["kind"], left["parts"]
        if kind == Stopped.__name__:
            return Stopped(what)
        return ProcessError(
            f"process {rank}: {what}" if kind == LostContactError.__name__ else what,
            where=where,
            fix=fix,
        )
    if was_told:
        return Stopped("stopped by SIGTERM between checkpoints; the same command goes on")
    if failure.exitcode < 0:
        why = "what it said stands above"
        if failure.exitcode == -signal.SIGKILL:
            why = "SIGKILL is mostly the system's, for want of memory"
        return ProcessError(
            f"process {rank} (pid {failure.pid}) was killed by {failure.signal_name()}; the others "
            "were stopped",
            fix=f"{why}; the same command goes on after the last checkpoint",
        )
    return ProcessError(
        f"process {rank} (pid {failure.pid}) failed with exit code {failure.exitcode}, and the "
        "others were stopped; what it said stands above",
        fix="the same command goes on after the last checkpoint",
    )


def _place(failure: Failure) -> int:
    """Which failures come first: told errors, kills, tracebacks, then those that followed."""
    left = _left_behind(failure)
    if left is not None and left["kind"] not in (LostContactError.__name__, Stopped.__name__):
        return 0
    # SIGABRT is how torch ends a process that has lost another.
    if failure.exitcode < 0 and failure.exitcode not in (-signal.SIGTERM, -signal.SIGABRT):
        return 1
    if left is not None and left["kind"] == Stopped.__name__:
        return 2
    return 4 if left is not None or failure.exitcode < 0 else 3


def _left_behind(failure: Failure) -> dict[str, Any] | None:
    """What `write_failure` wrote, where it was called."""
    message = failure.error_file_data.get("message")
    extra = message.get("extraInfo") if isinstance(message, dict) else None
    return extra if isinstance(extra, dict) and "parts" in extra else None
