"""Sampling in several processes, one a GPU: each takes whole parts, the parent writes them.

A process ends with its parent, however that ends: an orphan would hold its GPU's memory.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pyarrow as pa

from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.sample.backend import BackendSetup
from perpo_pipeline.sample.parts import PartSampler, count_tokens

Rows = list[dict[str, Any]]
Sampled = tuple[Rows, dict[str, Any]]  # rows, and the backend's notes
POLL_S = 0.5


class _Worker:
    """What a process has: its sampler, or why there is none; where it counts for the parent."""

    sampler: PartSampler | None = None
    fault: Exception | None = None
    counters: Any = None
    place: int = 0


def sample_in_processes(
    setup: BackendSetup,
    run_seed: int,
    pending: Mapping[int, pa.Table],
    processes: int,
    *,
    tell: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> Iterator[tuple[int, Rows, dict[str, Any]]]:
    """Index, rows and notes of every part, as they are done.

    `tell` gets prompts and tokens done so far, about twice a second. Once `should_stop`, parts that
    are under way are ended and yielded, and no other begun. Raises InputError if a process dies,
    ConfigError if there are fewer GPUs than processes, and what a process raises.
    """
    names = _visible_devices(processes)
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    places, counters = context.SimpleQueue(), context.RawArray("q", 2 * processes)
    for place in enumerate(names):
        places.put(place)
    executor = ProcessPoolExecutor(
        processes,
        mp_context=context,
        initializer=_open,
        initargs=(setup, run_seed, places, counters),
    )
    waiting = iter(pending.items())
    running: dict[Future[Sampled], int] = {}
    try:
        while True:
            while len(running) < processes and not should_stop():
                if (item := next(waiting, None)) is None:
                    break
                # Rows, not the table: with a slice all of its table would be sent.
                running[executor.submit(_sample, item[1].to_pylist())] = item[0]
            if not running:
                return
            finished = wait(running, POLL_S, FIRST_COMPLETED).done
            tell(sum(counters[::2]), sum(counters[1::2]))
            for future in finished:
                yield running.pop(future), *future.result()
    except BrokenProcessPool as error:
        raise InputError(
            "a sampling process ended (its own message stands above; often memory ran out)",
            fix="the same command goes on after the last whole part; lower sample.num_gpus or "
            "sample.batch_size if memory ran out",
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _visible_devices(processes: int) -> list[str]:
    """One CUDA device a process, of those that the environment allows, in order; any name where
    there is none at all. Raises ConfigError where there are some, but not enough."""
    import torch

    if not torch.cuda.is_available():
        return [""] * processes
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = allowed.split(",") if allowed else list(map(str, range(torch.cuda.device_count())))
    if len(names) < processes:
        raise ConfigError(
            f"num_gpus is {processes}, and {len(names)} GPUs are visible",
            fix="lower sample.num_gpus (--set sample.num_gpus=N), or correct CUDA_VISIBLE_DEVICES",
        )
    return names[:processes]


def _open(setup: BackendSetup, run_seed: int, places: Any, counters: Any) -> None:
    """Runs first in each process, before CUDA is used there."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _Worker.place, device = places.get()
    _Worker.counters = counters
    os.environ["CUDA_VISIBLE_DEVICES"] = device
    try:
        _Worker.sampler = PartSampler(setup, run_seed)
    except Exception as error:  # noqa: BLE001 - `_sample` raises it where the parent is told
        _Worker.fault = error


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _sample(prompts: Rows) -> Sampled:
    if _Worker.sampler is None:
        assert _Worker.fault is not None
        raise _Worker.fault
    rows = _Worker.sampler.sample(prompts, _count)
    return rows, _Worker.sampler.backend.notes()


def _count(prompts: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> None:
    """No other process writes these two numbers, so they need no lock."""
    _Worker.counters[2 * _Worker.place] += len(prompts)
    _Worker.counters[2 * _Worker.place + 1] += count_tokens(rows)
