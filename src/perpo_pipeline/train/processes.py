"""The processes of a training run: which one this is, and the values that they exchange.

These values go over gloo on the CPU; gradients and weights use the device's own backend (NCCL on
CUDA). A single process needs none of this.
"""

import importlib
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
TIME_OUT = timedelta(minutes=30)  # for loading and saving; torchrun notices a process that ends
LOST = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|remote process exited|ncclRemoteError|"
    r"communicator was aborted|timed out",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class World:
    """This process's place in the run; `group` exchanges values, None for a single process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and messages."""
        return self.rank == 0

    def broadcast(self, value: Value) -> Value:
        """The first process's value, in every process."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def gather(self, value: Value) -> list[Value]:
        """In the first process the values of all, by rank; in the others an empty list."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(value, found, dst=0, group=self.group)
        return found or []

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Sums over the processes, in every process."""
        if self.size == 1:
            return list(numbers)
        import torch
        import torch.distributed as dist

        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums, group=self.group)
        found: list[float] = sums.tolist()
        return found

    def max(self, number: int) -> int:
        """The largest of the processes' numbers, in every process."""
        if self.size == 1:
            return number
        import torch
        import torch.distributed as dist

        found = torch.tensor(number)
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self.group)
        return int(found)

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in at least one process."""
        return self.sum([float(flag)])[0] > 0

    def wait(self) -> None:
        """Wait until every process has called this."""
        self.any(False)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let the first process run before the others, which then find what it made."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()


def placed_by_launcher(environment: Mapping[str, str]) -> dict[str, str] | None:
    """RANK, WORLD_SIZE and related variables if a launcher started this process, else None.

    torchrun and deepspeed set them. An srun of several tasks sets its own variables, among them the
    node list: the processes meet on the first node.
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


def set_single_process(environment: MutableMapping[str, str]) -> None:
    """Set torchrun's variables for a single process, which DeepSpeed needs, unless they are set."""
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
    """Meet the other processes, if any; returns the same World at every call in a process.

    Raises InputError if this process's GPU does not exist.
    """
    if _joined:
        return _joined[0]
    placed = placed_by_launcher(os.environ)
    if placed is None and not with_deepspeed:
        return World()
    by_srun = placed is not None and "RANK" not in os.environ
    os.environ.update(placed or {})
    set_single_process(os.environ)
    if by_srun and on_cuda:
        _use_only_gpu(os.environ)
    rank, size, local = (int(os.environ[k]) for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if size == 1 and not with_deepspeed:
        return World()
    if on_cuda:
        _choose_gpu(local)
    _joined.append(World(rank, size, local, _init_process_group(on_cuda, with_deepspeed)))
    return _joined[0]


def is_first_process() -> bool:
    """Whether this process is the only one, or the first of several that have met."""
    return not _joined or _joined[0].is_first


def leave_world() -> None:
    """Leave the other processes, if any; every process must call it.

    Otherwise torch's threads can outlive Python and end the finished process with SIGABRT.
    """
    if _joined:
        import torch.distributed as dist

        _joined.clear()
        dist.destroy_process_group()


def is_lost_contact(error: BaseException) -> bool:
    """Whether torch's error says that another process has ended."""
    return isinstance(error, RuntimeError) and LOST.search(str(error)) is not None


def _use_only_gpu(environment: MutableMapping[str, str]) -> None:
    """With `srun --gpus-per-task=1` every task sees one GPU, its own, as number 0."""
    import torch

    if torch.cuda.device_count() == 1:
        environment["LOCAL_RANK"] = "0"


def _choose_gpu(local_rank: int) -> None:
    import torch

    if local_rank >= torch.cuda.device_count():
        raise InputError(
            f"process {local_rank} of this node has no GPU: the node has "
            f"{torch.cuda.device_count()}",
            fix="set --num-processes to the number of GPUs of a node",
        )
    torch.cuda.set_device(local_rank)


def _init_process_group(on_cuda: bool, with_deepspeed: bool) -> Any:
    """Start torch's process group; returns a second one, on gloo, for the exchanged values."""
    import torch.distributed as dist

    backend = "nccl" if on_cuda else "gloo"
    if with_deepspeed:  # before TrainingArguments, which would use another device's backend
        import deepspeed

        # torch repeats it at each of DeepSpeed's many calls
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        _without_shared_memory()
        with redirect_stdout(sys.stderr):  # DeepSpeed prints what it does
            deepspeed.init_distributed(
                backend, timeout=TIME_OUT, auto_mpi_discovery=False, verbose=False
            )
    else:
        dist.init_process_group(backend, timeout=TIME_OUT)
    return dist.new_group(backend="gloo", timeout=TIME_OUT)


def _without_shared_memory() -> None:
    """Let DeepSpeed not compile its collective for CPUs, which only its inference uses.

    It would compile it for a minute at the first use, and look for compilers in every process.
    """
    comm: Any = importlib.import_module("deepspeed.comm.torch")
    comm.build_shm_op = lambda: None


def _first_node(nodes: str) -> str:
    """The first name in SLURM's short form: `gpu[03-05,9],login1` means gpu03, gpu04, ..."""
    match = re.match(r"([^,\[]+)(?:\[([^\]]*)\])?", nodes)
    if match is None:
        return nodes
    name, numbers = match.groups()
    return name + re.split(r"[-,]", numbers)[0] if numbers else name
