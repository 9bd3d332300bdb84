"""Image workers: what travels to them, how they start and end, and room in shared memory."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_families import MODEL_TYPES, save_tiny_family
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.prepare import testbed as testbed_prompts
from perpo_pipeline.train import image_workers
from perpo_pipeline.train.batches import ListCollator, raise_failure
from perpo_pipeline.train.image_workers import (
    PassedOn,
    deaths_explained,
    num_workers,
    worker_arguments,
)
from perpo_pipeline.train.lists import TrainingList
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.tensors import tensors_of


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ListCollator]:
    """A family's collator, of a model that is saved once."""
    saved: dict[str, Path] = {}

    def collator(model_type: str, dtype: str = "float32") -> ListCollator:
        if model_type not in saved:
            saved[model_type] = save_tiny_family(model_type, tmp_path_factory.mktemp(model_type))
        vlm = load_vlm(resolve_model(str(saved[model_type])), dtype=dtype, device="cpu")
        return ListCollator(vlm, "processor", "shared-prefix", 10_000)

    return collator


@pytest.fixture(scope="module")
def lists() -> list[TrainingList]:
    chosen = testbed_prompts.testbed_settings(0, "train", 3)
    rows = testbed_prompts.render_prompts(chosen, "train")[:]
    return [TrainingList(row, [[20, 21, 2], [22, 2]], [1.0, 0.0], [1, 2]) for row in rows]


def tensors(collated: dict[str, Any]) -> list[torch.Tensor]:
    raise_failure(collated)
    return [tensor for batch in collated["batches"] for tensor in tensors_of(batch)]


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_worker_gets_no_weights_and_makes_the_same_batches(
    load: Callable[..., ListCollator], lists: list[TrainingList], model_type: str
) -> None:
    collator = load(model_type)
    sent = pickle.dumps(collator.for_workers())
    weights = sum(p.numel() * p.element_size() for p in collator.vlm.model.parameters())
    received: ListCollator = pickle.loads(sent)  # noqa: S301 (our own)
    assert all(p.is_meta for p in received.vlm.model.parameters()) and weights > 0
    assert_equal(received(lists), collator(lists))


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_of_every_start_method_make_the_same_batches(
    load: Callable[..., ListCollator],
    lists: list[TrainingList],
    method: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Qwen2.5-VL's model computes positions, and its processor is made without its video part."""
    monkeypatch.setattr(image_workers, "START_METHOD", method)
    collator = load("qwen2_5_vl")
    loader: DataLoader[TrainingList] = DataLoader(
        PassedOn(len(lists)),
        sampler=lists,
        batch_size=2,
        collate_fn=collator.for_workers(),
        **worker_arguments(1, "cpu"),
    )
    found = list(loader)
    assert len(found) == 2
    for call, some in zip(found, (lists[:2], lists[2:]), strict=True):
        assert_equal(call, collator(some))
        assert all(t.is_shared() for t in tensors(call))


def test_workers_and_their_server_ignore_sigterm_and_end_with_a_killed_training() -> None:
    """SIGTERM goes to the whole session, as from a scheduler; then only the training is killed."""
    script = (
        "import multiprocessing, os, signal, sys, time\n"
        "from torch.utils.data import DataLoader\n"
        "from perpo_pipeline.train import image_workers as w\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True))\n"
        "w.PRELOADED = []\n"
        "if __name__ == '__main__':\n"
        "    arguments = w.worker_arguments(1, 'cpu')\n"
        "    loader = iter(DataLoader(w.PassedOn(9), sampler=range(9), **arguments))\n"
        "    next(loader)\n"
        "    from multiprocessing.forkserver import _forkserver as server\n"
        "    print(loader._workers[0].pid, server._forkserver_pid, flush=True)\n"
        "    for _ in range(3): sys.stdin.readline(); print(next(loader), flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as training:
        assert training.stdin is not None and training.stdout is not None
        others = [int(pid) for pid in training.stdout.readline().split()]
        assert len(others) == 2
        os.killpg(training.pid, signal.SIGTERM)
        assert training.stdout.readline() == "asked\n"
        training.stdin.write("\n")
        training.stdin.flush()
        assert training.stdout.readline() == "tensor([1])\n"
        assert all(is_alive(pid) for pid in others)
        training.kill()
    for _ in range(100):
        if not any(is_alive(pid) for pid in others):
            return
        time.sleep(0.1)
    pytest.fail("still alive ten seconds after the training")


def test_a_process_that_fails_does_not_wait_for_its_workers() -> None:
    """It waited for ever: what an exception holds is released only after Python's own wait."""
    script = (
        "from torch.utils.data import DataLoader\n"
        "from perpo_pipeline.train import image_workers as w\n"
        "w.START_METHOD = 'fork'\n"
        "kept = iter(DataLoader(w.PassedOn(9), sampler=range(9), **w.worker_arguments(1, 'cpu')))\n"
        "next(kept)\n"
        "kept.__class__.__del__ = lambda self: None\n"
        "raise SystemExit(7)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], timeout=120, check=False)
    assert ended.returncode == 7


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but that nobody asked about does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("model_type", ["llava", "qwen2_5_vl"])
def test_pixels_travel_in_the_dtype_in_which_the_model_reads_them(
    load: Callable[..., ListCollator], lists: list[TrainingList], model_type: str
) -> None:
    exact, rounded = (load(model_type, dtype)(lists) for dtype in ("float32", "bfloat16"))
    ((ours, theirs),) = [
        (a.lists.tensors, b.lists.tensors)
        for a, b in zip(exact["batches"], rounded["batches"], strict=True)
    ]
    assert ours["pixel_values"].dtype == torch.float32
    assert torch.equal(theirs["pixel_values"], ours["pixel_values"].bfloat16())
    for name in ours.keys() - {"pixel_values"}:
        assert torch.equal(ours[name], theirs[name])


@pytest.mark.parametrize("forward", ["shared-prefix", "separate"])
def test_every_tensor_of_a_batch_is_pinned(
    load: Callable[..., ListCollator],
    lists: list[TrainingList],
    forward: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a DataLoader pins what a worker sends; one that is left out would be copied while the host
    waits."""
    pinned: list[int] = []

    def pin(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
        copy = tensor.clone()
        pinned.append(copy.data_ptr())
        return copy

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    collator = load("llava")
    collator.forward = forward
    collated = collator(lists)
    found = pin_memory(collated)
    assert_equal(found, collated)
    assert [t.data_ptr() for t in tensors(found)] == pinned and len(pinned) > 9


@pytest.mark.parametrize("forward", ["shared-prefix", "separate"])
def test_every_tensor_of_a_batch_moves_to_the_device(
    load: Callable[..., ListCollator], lists: list[TrainingList], forward: str
) -> None:
    collator = load("qwen2_5_vl")
    collator.forward = forward
    (batch,) = collator(lists)["batches"]
    there = batch.to("meta", non_blocking=True)
    moved, ours = list(tensors_of(there)), list(tensors_of(batch))
    assert {tensor.device.type for tensor in moved} == {"meta"} and len(moved) > 9
    assert [(t.shape, t.dtype) for t in moved] == [(t.shape, t.dtype) for t in ours]
    assert (there.names, there.lists.num_packed) == (batch.names, batch.lists.num_packed)


# --- shared memory --------------------------------------------------------------------------------


@pytest.mark.parametrize(("free_mib", "workers"), [(64, 0), (300, 3)])
def test_a_small_shared_memory_starts_no_workers_by_default(
    monkeypatch: pytest.MonkeyPatch, free_mib: int, workers: int
) -> None:
    """Docker gives 64 MB."""
    usage = SimpleNamespace(free=free_mib * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(image_workers, "cores", lambda: 4)
    assert num_workers(None, "cuda") == workers
    assert num_workers(None, "cpu") == 0
    assert num_workers(2, "cuda") == 2
    why = image_workers.lacks_shared_memory()
    assert (why is None) == (workers > 0)
    assert why is None or ("64 MiB free" in why and "--shm-size=1g" in why)


def test_a_full_shared_memory_is_one_error_with_what_to_do(
    load: Callable[..., ListCollator], lists: list[TrainingList], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's words where a batch finds no room, and where the kernel ended the worker for it."""
    collator = load("llava")

    def full(tensor: torch.Tensor) -> None:
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1>: No space (28)"
        )

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "share_memory_", full)
        raise_failure(collator(lists))  # in the training process nothing is shared
        patched.setattr(torch.utils.data, "get_worker_info", lambda: SimpleNamespace(id=0))
        what, _, fix = collator(lists)["failed"]
    assert "no room in /dev/shm" in what and "--shm-size=1g" in fix and "num_workers: 0" in fix
    found = explained(
        "DataLoader worker (pid 9) is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of shared memory."
    )
    assert isinstance(found, ConfigError)
    assert "no room in /dev/shm" in found.what and found.fix == fix
    found = explained("DataLoader worker (pid 9) is killed by signal: Killed. ")
    assert isinstance(found, ConfigError)
    assert "is killed by signal: Killed" in found.what and "num_workers" in str(found.fix)
    assert str(explained("another error")) == "another error"


def explained(message: str) -> Exception:
    """What a user gets for an error of torch."""
    with pytest.raises((ConfigError, RuntimeError)) as caught, deaths_explained():
        raise RuntimeError(message)
    return caught.value
