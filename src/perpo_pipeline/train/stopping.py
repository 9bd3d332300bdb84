"""A scheduler's SIGTERM: finish the step, save a checkpoint, and end with a message."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from perpo_pipeline.train.processes import World


class StopRequest:
    """Whether SIGTERM has come; several count as one request."""

    def __init__(self) -> None:
        self.has_come = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Treat SIGTERM as a request; only in the main thread, which receives signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.has_come = True


class StopAtRequest(TrainerCallback):
    """Ends training with a checkpoint after the step in which any process received SIGTERM."""

    def __init__(self, request: StopRequest, world: World) -> None:
        self.request, self.world = request, world

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.world.any(self.request.has_come) and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
