"""Prompts are read in threads, images included, while the model answers those before them.

Pillow, NumPy and PyTorch release Python's lock for most of the work on an image, so these threads
delay the thread that drives a GPU very little. On a CPU the model uses the cores itself.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, TypeVar

from perpo_pipeline.inference.backend import Row
from perpo_pipeline.vlm.inputs import prompt_images

if TYPE_CHECKING:
    from PIL.Image import Image

Found = TypeVar("Found")
# (row, what returns its images or raises their error) -> what was read
Read = Callable[[Row, Callable[[], "list[Image]"]], Found]

OPENERS = 4  # threads that open and decode images; more would only wait for Python's lock
OPENED = 8  # rows whose images are decoded and not read yet


def reads_ahead(device: str) -> bool:
    """Whether prompts for a model on `device` are read ahead."""
    return device != "cpu"


class Ahead(Generic[Found]):
    """Reads rows in order, from the moment that they are expected.

    Several threads open images, and one calls `read`: fast tokenizers refuse two threads at once.
    What `read` raises is raised when the row is taken, so errors come in the order of the rows.
    """

    def __init__(self, read: Read[Found]) -> None:
        self.read = read
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="read")
        self.openers = ThreadPoolExecutor(OPENERS, thread_name_prefix="open")
        self.begun: dict[int, tuple[Row, Future[Found]]] = {}
        self.unopened: deque[Row] = deque()
        self.opened: dict[int, Future[list[Image]]] = {}  # of the reader's thread alone

    def expect(self, rows: Sequence[Row]) -> None:
        """Begin to read these rows; `take` gets the same objects later."""
        self.unopened.extend(rows)
        for row in rows:
            self.begun[id(row)] = row, self.reader.submit(self._read, row)

    def take(self, rows: Sequence[Row]) -> list[Found]:
        """What was read of each row, in order; rows that were not expected are read now."""
        self.unopened.extend(row for row in rows if id(row) not in self.begun)
        futures = [self._future(row) for row in rows]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()  # of rows after one that raised

    def _future(self, row: Row) -> Future[Found]:
        begun = self.begun.pop(id(row), None)
        return self.reader.submit(self._read, row) if begun is None else begun[1]

    def _read(self, row: Row) -> Found:
        while self.unopened and len(self.opened) < OPENED:
            following = self.unopened.popleft()
            self.opened[id(following)] = self.openers.submit(prompt_images, following)
        images = self.opened.pop(id(row), None) or self.openers.submit(prompt_images, row)
        return self.read(row, images.result)

    def close(self) -> None:
        """Give up what is not taken yet, and end the threads."""
        self.begun.clear()
        self.reader.shutdown(cancel_futures=True)
        self.openers.shutdown(cancel_futures=True)  # after the row that waits for an image
