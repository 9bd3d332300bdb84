"""The processes of a training run: which of them this is, and what they tell each other.

What they say here goes over gloo on the CPU; gradients and weights go the way that the device
wants (NCCL on CUDA). One process needs none of it.
"""

import os
import re
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from perpo_pipeline.errors import InputError

Value = TypeVar("Value")
TIME_OUT = timedelta(minutes=30)  # loading and saving are waited for; a death is noticed elsewhere
LOST = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|remote process exited|ncclRemoteError|"
    r"communicator was aborted|timed out",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class World:
    """This process among all of the run; `group` carries messages, None for a single process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def share(self, value: Value) -> Value:
        """What the first process has given, in all of them."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def gather(self, value: Value) -> list[Value]:
        """In the first process the value of each, by rank; in the others an empty list."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(value, found, dst=0, group=self.group)
        return found or []

    def add_up(self, numbers: Sequence[float]) -> list[float]:
        """Sums over the processes, in all of them."""
        if self.size == 1:
            return list(numbers)
        import torch
        import torch.distributed as dist

        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums, group=self.group)
        found: list[float] = sums.tolist()
        return found

    def most(self, number: int) -> int:
        """The largest of the processes' numbers, in all of them."""
        if self.size == 1:
            return number
        import torch
        import torch.distributed as dist

        found = torch.tensor(number)
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self.group)
        return int(found)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in one process at least."""
        return self.add_up([float(flag)])[0] > 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.any(False)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let the first process go before the others, which then find what it has made."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()


def placed_by_launcher(environment: Mapping[str, str]) -> dict[str, str] | None:
    """RANK, WORLD_SIZE and the like where a launcher has started this process, or None.

    torchrun and deepspeed say so themselves. An srun of several tasks does it in its own names,
    the node list among them: the first node is where the processes meet.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return {k: environment[k] for k in ("RANK", "WORLD_SIZE")} | {
            "LOCAL_RANK": environment.get("LOCAL_RANK", "0")
        }
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return None
    nodes = environment.get("SLURM_STEP_NODELIST", "localhost")
    port = 20_000 + int(environment.get("SLURM_JOB_ID", "0")) % 20_000
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": environment.get("MASTER_ADDR", _first_node(nodes)),
        "MASTER_PORT": environment.get("MASTER_PORT", str(port)),
    }


def alone(environment: MutableMapping[str, str]) -> None:
    """Say in torchrun's names that there is one process, which DeepSpeed wants to hear."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }.items():
        environment.setdefault(name, value)


_joined: list[World] = []


def join_world(*, on_cuda: bool, with_deepspeed: bool) -> World:
    """Meet the other processes, if there are any; the same World at every call of a process.

    Raises InputError where this process's GPU does not exist.
    """
    if _joined:
        return _joined[0]
    placed = placed_by_launcher(os.environ)
    if placed is None and not with_deepspeed:
        return World()
    by_srun = placed is not None and "RANK" not in os.environ
    os.environ.update(placed or {})
    alone(os.environ)
    if by_srun and on_cuda:
        _take_only_gpu(os.environ)
    rank, size, local = (int(os.environ[k]) for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if size == 1 and not with_deepspeed:
        return World()
    if on_cuda:
        _choose_gpu(local)
    _joined.append(World(rank, size, local, _meet(on_cuda, with_deepspeed)))
    return _joined[0]


def is_first_process() -> bool:
    """Whether this process is the only one, or the first of several that have met."""
    return not _joined or _joined[0].is_first


def leave_world() -> None:
    """Part from the other processes, where there were any; all must come to it.

    Threads of torch that outlive Python can end the process with SIGABRT when its work is done.
    """
    if _joined:
        import torch.distributed as dist

        _joined.clear()
        dist.destroy_process_group()


def is_lost_contact(error: BaseException) -> bool:
    """Whether an error of a meeting says that another process has gone."""
    return isinstance(error, RuntimeError) and LOST.search(str(error)) is not None


def _take_only_gpu(environment: MutableMapping[str, str]) -> None:
    """With `srun --gpus-per-task=1` every task sees one GPU, its own, whatever its number."""
    import torch

    if torch.cuda.device_count() == 1:
        environment["LOCAL_RANK"] = "0"


def _choose_gpu(local_rank: int) -> None:
    import torch

    if local_rank >= torch.cuda.device_count():
        raise InputError(
            f"process {local_rank} of this node has no GPU: there are {torch.cuda.device_count()}",
            fix="give --num-processes the number of GPUs of a node",
        )
    torch.cuda.set_device(local_rank)


def _meet(on_cuda: bool, with_deepspeed: bool) -> Any:
    import torch.distributed as dist

    backend = "nccl" if on_cuda else "gloo"
    if with_deepspeed:  # before TrainingArguments, which would do it with another device's backend
        import deepspeed

        # torch says it at each of DeepSpeed's many calls
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        with redirect_stdout(sys.stderr):  # it tells of what it has compiled
            deepspeed.init_distributed(
                backend, timeout=TIME_OUT, auto_mpi_discovery=False, verbose=False
            )
    else:
        dist.init_process_group(backend, timeout=TIME_OUT)
    return dist.new_group(backend="gloo", timeout=TIME_OUT)


def _first_node(nodes: str) -> str:
    """The first name of SLURM's short form: `gpu[03-05,9],login1` is gpu03, gpu04, ..."""
    match = re.match(r"([^,\[]+)(?:\[([^\]]*)\])?", nodes)
    if match is None:
        return nodes
    name, numbers = match.groups()
    return name + re.split(r"[-,]", numbers)[0] if numbers else name
