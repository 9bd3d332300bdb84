"""Ctrl-C and SIGTERM both end a command in order, with what is finished on disk."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated
