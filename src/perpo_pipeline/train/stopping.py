"""Ctrl-C and SIGTERM: finish the step, save a checkpoint, and end with a message."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from perpo_pipeline.train.processes import World

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """The signal that asked the training to end, if one has come.

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


class StopAtRequest(TrainerCallback):
    """Saves a checkpoint after the step in which any process was asked to end, and ends there.

    Also saves one where `every_s` seconds have passed since the last.
    """

    def __init__(self, request: StopRequest, world: World, every_s: float) -> None:
        self.request, self.world, self.every_s = request, world, every_s
        self.saved_at = time.monotonic()
        self.number = 0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        due = self.world.is_first and time.monotonic() - self.saved_at >= self.every_s
        numbers = [self.request.number == number for number in SIGNALS]
        *asked, is_due = self.world.sum([*map(float, numbers), float(due)])
        if state.global_step == state.max_steps:
            return
        if any(asked):
            self.number = next(n for n, has_come in zip(SIGNALS, asked, strict=True) if has_come)
            control.should_save = control.should_training_stop = True
        elif is_due:
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.saved_at = time.monotonic()


def _print_from_handler(message: str) -> None:
    """Print to stderr in a signal handler, which may have interrupted another print."""
    try:
        print(f"\n{message}", file=sys.stderr, flush=True)
    except RuntimeError:
        os.write(2, f"\n{message}\n".encode())
