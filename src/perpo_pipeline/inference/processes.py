"""Several processes, one per GPU: each takes whole parts, the parent writes them.

A process ends with its parent, even if the parent is killed: an orphan would hold its GPU's memory.
Ctrl-C is the parent's alone, which ends the processes after it has taken what they have answered.
"""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any

import pyarrow as pa

from perpo_pipeline import advice
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.inference.backend import BackendSetup
from perpo_pipeline.inference.part_sampler import PartSampler, Row, count_tokens
from perpo_pipeline.vlm.cards import check_cards

Sampled = tuple[list[Row], dict[str, Any]]  # rows, and the backend's notes
POLL_S = 0.5


class _Worker:
    """The state of one process: its sampler, or the error that prevented one.

    `counters` is shared with the parent; this process counts at `place`. `channel` takes what the
    parent keeps to it.
    """

    sampler: PartSampler | None = None
    error: Exception | None = None
    counters: Any = None
    channel: Any = None
    place: int = 0


def sample_in_processes(
    setup: BackendSetup,
    run_seed: int,
    pending: Mapping[int, pa.Table],
    processes: int,
    *,
    on_progress: Callable[[int, int], None],
    on_kept: Callable[[int, Sequence[Row]], None],
    should_stop: Callable[[], bool],
) -> Iterator[tuple[int, list[Row], dict[str, Any]]]:
    """Yield index, rows and notes of every part as it is done.

    `on_progress` gets the prompts and tokens done so far, about twice a second, `on_kept` a part's
    index and those of its rows that a later sitting need not make again. Once `should_stop`
    is true, no new part is begun; parts under way are finished and yielded. Raises InputError if a
    process dies, ConfigError if fewer GPUs are visible than processes are wanted, and any error
    that a process raises.
    """
    check_cards(setup.model, processes)
    devices = visible_devices(processes, setup.model.device, "num_gpus")
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    places, counters = context.SimpleQueue(), context.RawArray("q", 2 * processes)
    for place in enumerate(devices):
        places.put(place)
    answers = _Answers(context)
    executor = ProcessPoolExecutor(
        processes,
        mp_context=context,
        initializer=_open,
        initargs=(setup, run_seed, places, counters, answers.channel, advice.current()),
    )
    waiting = iter(pending.items())
    running: dict[Future[Sampled], int] = {}
    try:
        while True:
            while len(running) < processes and not should_stop():
                if (item := next(waiting, None)) is None:
                    break
                # Rows, not the table: pickling a slice would send the whole table.
                running[executor.submit(_sample, item[0], item[1].to_pylist())] = item[0]
            if not running:
                return
            finished = wait(running, POLL_S, FIRST_COMPLETED).done
            on_progress(sum(counters[::2]), sum(counters[1::2]))
            answers.take(on_kept)
            for future in finished:
                yield running.pop(future), *future.result()
    except BrokenProcessPool as error:
        raise InputError(
            "a process that answers prompts ended (its own message is above; often memory ran out)",
            fix="the same command goes on from what is kept. If memory ran out, lower "
            f"{setup.settings.key('num_gpus')} first: fewer processes make the same rows (another "
            "batch_size is another version, which is begun from its first prompt)",
        ) from error
    except BaseException:  # otherwise `shutdown` would wait for parts whose answers nobody takes
        for process in [*executor._processes.values()]:
            process.kill()
        answers.take(on_kept)
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        answers.channel.close()


class _Answers:
    """What processes have answered of parts under way; a thread reads it, so that none waits."""

    def __init__(self, context: Any) -> None:
        self.channel = context.SimpleQueue()
        self.arrived: queue.SimpleQueue[tuple[int, list[Row]]] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with suppress(EOFError, OSError, TypeError, ValueError):  # closed while it waits
            while True:
                self.arrived.put(self.channel.get())

    def take(self, on_kept: Callable[[int, Sequence[Row]], None]) -> None:
        """Hand over what has arrived."""
        while not self.arrived.empty():
            on_kept(*self.arrived.get())


def visible_devices(processes: int, device: str, option: str) -> list[str]:
    """One CUDA device per process, from those that the environment allows, in order.

    Empty names on a machine without CUDA, and for a `device` of "cpu". Raises ConfigError if fewer
    devices are visible than processes are wanted; `option` is what asked for them.
    """
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return [""] * processes
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = allowed.split(",") if allowed else list(map(str, range(torch.cuda.device_count())))
    if len(names) < processes:
        raise ConfigError(
            f"{option} is {processes}, and {len(names)} GPUs are visible",
            fix=f"lower {option}, or correct CUDA_VISIBLE_DEVICES",
        )
    return names[:processes]


def _open(
    setup: BackendSetup,
    run_seed: int,
    places: Any,
    counters: Any,
    channel: Any,
    given: advice.Invocation,
) -> None:
    """Open the backend; runs first in each process, before CUDA is used there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to every process
    advice.adopt(given)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _Worker.channel = channel
    _Worker.place, device = places.get()
    _Worker.counters = counters
    os.environ["CUDA_VISIBLE_DEVICES"] = device
    try:
        _Worker.sampler = PartSampler(setup, run_seed)
    except Exception as error:  # noqa: BLE001 - `_sample` raises it, which reaches the parent
        _Worker.error = error


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _sample(index: int, prompts: list[Row]) -> Sampled:
    if _Worker.sampler is None:
        assert _Worker.error is not None
        raise _Worker.error

    def keep(rows: Sequence[Row]) -> None:
        _Worker.channel.put((index, [*rows]))

    whole = _Worker.sampler.answers_whole_parts
    rows = _Worker.sampler.sample(prompts, _count, None if whole else keep)
    return rows, _Worker.sampler.backend.notes()


def _count(prompts: Sequence[Row], rows: Sequence[Row]) -> None:
    """Add to this process's two counters; no other process writes them, so they need no lock."""
    _Worker.counters[2 * _Worker.place] += len(prompts)
    _Worker.counters[2 * _Worker.place + 1] += count_tokens(rows)
