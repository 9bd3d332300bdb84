"""Prompts are read in threads, images included, while the model answers those before them.

Pillow, NumPy and PyTorch release Python's lock for most of the work on an image, so a thread
delays the thread that drives a GPU very little. On a CPU the model uses the cores itself.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Generic, TypeVar

from perpo_pipeline.inference.backend import Row
from perpo_pipeline.machine import cores

Reader = TypeVar("Reader")
Found = TypeVar("Found")

THREADS = 4  # beside a GPU; more would only wait for Python's lock


def reading_threads(device: str) -> int:
    """How many threads read prompts for a model on `device`: 0 means none beside its own."""
    return 0 if device == "cpu" else min(THREADS, cores())


class Ahead(Generic[Reader, Found]):
    """Reads rows with `read`, in one thread per reader, from the moment that they are expected.

    No two threads use a reader at once: fast tokenizers refuse that. What `read` raises is raised
    when the row is taken, so errors come in the order of the rows.
    """

    def __init__(self, read: Callable[[Reader, Row], Found], readers: Sequence[Reader]) -> None:
        self.read, self.free = read, SimpleQueue[Reader]()
        for reader in readers:
            self.free.put(reader)
        self.pool = ThreadPoolExecutor(len(readers), thread_name_prefix="read")
        self.begun: dict[int, tuple[Row, Future[Found]]] = {}

    def expect(self, rows: Sequence[Row]) -> None:
        """Begin to read these rows; `take` gets the same objects later."""
        for row in rows:
            self.begun[id(row)] = row, self.pool.submit(self._read, row)

    def take(self, rows: Sequence[Row]) -> list[Found]:
        """What was read of each row, in order; rows that were not expected are read now."""
        futures = [self._future(row) for row in rows]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()  # of rows after one that raised

    def _future(self, row: Row) -> Future[Found]:
        begun = self.begun.pop(id(row), None)
        return self.pool.submit(self._read, row) if begun is None else begun[1]

    def _read(self, row: Row) -> Found:
        reader = self.free.get()
        try:
            return self.read(reader, row)
        finally:
            self.free.put(reader)

    def close(self) -> None:
        """Give up what is not taken yet, and end the threads."""
        self.begun.clear()
        self.pool.shutdown(cancel_futures=True)
