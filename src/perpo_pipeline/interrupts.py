"""Ctrl-C and SIGTERM both end a command in order, with what is finished on disk."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM came: whoever handles Ctrl-C handles it too."""


@contextmanager
def sigterm_like_ctrl_c() -> Iterator[None]:
    """Raise Terminated in the main thread when SIGTERM comes, instead of ending the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def signal_of(interrupt: BaseException | None) -> signal.Signals:
    """SIGTERM if a Terminated led to this exception, else SIGINT."""
    while interrupt is not None:
        if isinstance(interrupt, Terminated):
            return signal.SIGTERM
        interrupt = interrupt.__cause__ or interrupt.__context__
    return signal.SIGINT


class StopRequest:
    """The signal that asked the work to end, if one has come, for work that ends by itself.

    `announcement` is printed when Ctrl-C comes. A second Ctrl-C raises KeyboardInterrupt; further
    SIGTERMs count as the same request.
    """

    def __init__(self, announcement: str = "") -> None:
        self.number: int | None = None
        self.announcement = announcement

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Treat signals as a request; only in the main thread, which receives them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.number == number:
            raise KeyboardInterrupt
        self.number = number
        if number == signal.SIGINT and self.announcement:
            _print_from_handler(self.announcement)

    def check(self) -> None:
        """Raise KeyboardInterrupt or Terminated if a signal has come."""
        if self.number is not None:
            raise Terminated if self.number == signal.SIGTERM else KeyboardInterrupt


def _print_from_handler(message: str) -> None:
    """Print to stderr in a signal handler, which may have interrupted another print."""
    text = f"\r\x1b[K{message}" if sys.stderr.isatty() else message  # above a bar
    try:
        print(text, file=sys.stderr, flush=True)
    except RuntimeError:
        os.write(2, f"{text}\n".encode())


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated
