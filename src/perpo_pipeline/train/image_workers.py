"""The processes that prepare images while the accelerator computes.

They are forked from a *fork server*: a small process without threads, CUDA or NCCL, started before
the model is loaded, which has imported what preparing needs. Forking the training process itself is
quicker, but not safe once CUDA, NCCL or other threads run in it (PyTorch's notes on
DistributedDataParallel advise a fork server); a fresh process per worker (`spawn`) would import
transformers each time. No weights go to a worker, nor the lists: each step's lists travel with it.
"""

import atexit
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.data import Dataset

from perpo_pipeline.errors import ConfigError, first_line
from perpo_pipeline.machine import cores

Item = TypeVar("Item")

IMAGE_WORKERS = 4  # where a GPU would wait for images; each holds some batches in shared memory
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
# What the fork server imports, because importing it takes most of a worker's start.
PRELOADED = [
    "perpo_pipeline.train.batches",
    "perpo_pipeline.vlm.prompts",
    "transformers.image_processing_backends",
    "transformers.models.auto.processing_auto",
    "transformers.tokenization_utils_tokenizers",
]
SHARED_MEMORY = Path("/dev/shm")
NEEDED_BYTES = 2**28  # 4 workers with 2 steps each, of 8 lists of LLaVA-NeXT's tiles in bf16
FIX = (
    "give the container more shared memory (docker run --shm-size=1g, or --ipc=host), or set "
    "train.num_workers: 0"
)
# Messages of torch for a worker that wrote to a full /dev/shm, and for one that ended.
NO_ROOM = re.compile(r"bus error|shared memory", re.IGNORECASE)
ENDED = re.compile(r"DataLoader worker \(pid")


def num_workers(wanted: int | None, device: str) -> int:
    """How many processes prepare images during the forward passes.

    Without a wish: some on CUDA, if there is room for their batches.
    """
    if wanted is not None:
        return wanted
    if device != "cuda" or lacks_shared_memory() is not None:
        return 0
    return min(IMAGE_WORKERS, max(1, cores() - 1))


def lacks_shared_memory() -> str | None:
    """Why no image worker is started by default: a small /dev/shm. None where it is large."""
    if not SHARED_MEMORY.is_dir():  # macOS has other shared memory
        return None
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free >= NEEDED_BYTES:
        return None
    return (
        f"{SHARED_MEMORY} has only {free / 2**20:,.0f} MiB free, so the training process prepares "
        f"the images itself, and the GPU waits for them. With {NEEDED_BYTES / 2**20:,.0f} MiB (as "
        "with docker run --shm-size=1g) other processes would prepare them; train.num_workers "
        "overrides this"
    )


def start_server() -> None:
    """Start the fork server, which makes its imports while this process loads the model.

    It never gets SIGTERM, which a scheduler sends to every process, and ends with this process.
    """
    if START_METHOD != "forkserver":
        return
    multiprocessing.set_forkserver_preload(PRELOADED)
    resource_tracker.ensure_running()  # the server needs it; its start would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # which it inherits
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker_arguments(number: int, device: str) -> dict[str, Any]:
    """Arguments of a DataLoader whose batches `number` processes prepare.

    On CUDA they are put into pinned memory, from which the device copies while the host goes on.
    """
    if not number:
        return {}
    start_server()
    atexit.unregister(_end_workers)
    atexit.register(_end_workers)
    return {
        "num_workers": number,
        "multiprocessing_context": START_METHOD,
        "worker_init_fn": prepare_worker,
        "pin_memory": device == "cuda",
    }


def prepare_worker(_: int) -> None:
    """Keep a worker alive as long as its training process, and no longer.

    A scheduler or a terminal signals every process, but the current step still needs its images.
    A training process that is killed signals nobody.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_workers() -> None:
    """As this process ends, end the workers that an error has left.

    Python sends its daemons SIGTERM, which they ignore, and waits for them.
    """
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class PassedOn(Dataset[Item]):
    """Hands on what the sampler yields: what a worker needs travels with each call."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: Item) -> Item:
        return item


def share(tensors: Iterable[Tensor]) -> None:
    """Move a batch's tensors to shared memory.

    torch would do so in a thread of the worker, whose errors reach nobody: the training would wait
    for ever. Raises ConfigError if there is no room.
    """
    try:
        for tensor in tensors:
            tensor.share_memory_()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise no_room(error) from error


def no_room(error: Exception) -> ConfigError:
    """The error for a full /dev/shm."""
    return ConfigError(
        f"no room in {SHARED_MEMORY} for the images of a step: {first_line(error)}", fix=FIX
    )


@contextmanager
def deaths_explained() -> Iterator[None]:
    """Name the likely cause where an image worker ended."""
    try:
        yield
    except RuntimeError as error:
        if not ENDED.search(str(error)):
            raise
        if NO_ROOM.search(str(error)):
            raise no_room(error) from error
        raise ConfigError(
            f"a process that prepares images ended: {first_line(error)}",
            fix="if the machine's memory ran out, lower train.num_workers (0: the training process "
            "prepares the images); the same command resumes from the last checkpoint",
        ) from error
