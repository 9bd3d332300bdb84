"""Ctrl-C and SIGTERM: finish the step, save a checkpoint, and end with a message."""

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from perpo_pipeline.interrupts import SIGNALS, StopRequest
from perpo_pipeline.train.processes import World

MOST_SAVING = 0.05  # share of the time that saving by the clock may take


class StopAtRequest(TrainerCallback):
    """Saves a checkpoint after the step in which any process was asked to end, and ends there.

    Also saves one where `every_s` seconds have passed since the last, or more if saving is slow:
    the last save, which is measured, must be at most MOST_SAVING of the time until the next.
    """

    def __init__(self, request: StopRequest, world: World, every_s: float) -> None:
        self.request, self.world, self.every_s = request, world, every_s
        self.step_ended_at = self.saved_at = time.monotonic()
        self.saving_s = 0.0
        self.number = 0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.step_ended_at = time.monotonic()
        wait_s = max(self.every_s, self.saving_s / MOST_SAVING)
        due = self.world.is_first and self.step_ended_at - self.saved_at >= wait_s
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
        self.saving_s = self.saved_at - self.step_ended_at
