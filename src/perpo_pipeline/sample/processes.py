"""Sampling in several processes, one a GPU: each takes whole parts, the parent writes them."""

import multiprocessing
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pyarrow as pa

from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.sample.backend import BackendSetup
from perpo_pipeline.sample.stage import PartSampler

Rows = list[dict[str, Any]]

_sampler: PartSampler | None = None  # of this worker


def sample_in_processes(
    setup: BackendSetup, run_seed: int, pending: Mapping[int, pa.Table], processes: int
) -> Iterator[tuple[int, Rows, dict[str, Any]]]:
    """Index, rows and notes of every part, as they are done; InputError if a process dies."""
    names = _visible_devices(processes)
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    devices = context.SimpleQueue()
    for device in names:
        devices.put(device)
    executor = ProcessPoolExecutor(
        processes, mp_context=context, initializer=_open, initargs=(setup, run_seed, devices)
    )
    try:
        futures = {executor.submit(_sample, chunk): i for i, chunk in pending.items()}
        for future in as_completed(futures):
            yield futures[future], *future.result()
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
            fix="lower sample.num_gpus (--num-gpus), or correct CUDA_VISIBLE_DEVICES",
        )
    return names[:processes]


def _open(setup: BackendSetup, run_seed: int, devices: Any) -> None:
    """Runs first in each worker, before torch is imported there."""
    global _sampler
    os.environ["CUDA_VISIBLE_DEVICES"] = devices.get()
    _sampler = PartSampler(setup, run_seed)


def _sample(chunk: pa.Table) -> tuple[Rows, dict[str, Any]]:
    assert _sampler is not None  # `_open` ran
    rows = _sampler.sample(chunk.to_pylist(), lambda prompts, rows: None)
    return rows, _sampler.backend.notes()
