"""A training's progress: a bar on a terminal, a line per minute in a log."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

LINE_EVERY_S = 60
# name in the log -> displayed name and format
SHOWN = {
    "loss": ("loss", ".3g"),
    "reward_accuracy": ("accuracy", ".2f"),
    "tokens_per_s": ("tokens/s", ",.0f"),
}


class Progress(TrainerCallback):
    """Shows loss, reward accuracy, tokens per second and time left on stderr, unless `quiet`.

    On a terminal it is a bar; elsewhere, as under a scheduler, a line per minute and a last one.
    """

    def __init__(self, what: str, quiet: bool) -> None:
        self.what, self.quiet = what, quiet

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started_at, self.first_step = time.monotonic(), state.global_step
        self.printed_at = self.started_at
        silent = self.quiet or not state.is_world_process_zero
        on_terminal = sys.stderr.isatty()
        self.writes_lines = not silent and not on_terminal
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.what,
            disable=silent or not on_terminal,
            leave=False,
            dynamic_ncols=True,
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        shown = figures(logs or {})
        self.bar.set_postfix(shown)
        self.bar.update(state.global_step - self.bar.n)
        now = time.monotonic()
        done = state.global_step == state.max_steps and "loss" in (logs or {})
        if self.writes_lines and (done or now - self.printed_at >= LINE_EVERY_S):
            self.printed_at = now
            seconds = now - self.started_at
            steps = state.global_step - self.first_step
            print(
                progress_line(
                    self.what, state.global_step, state.max_steps, shown, seconds / max(steps, 1)
                ),
                file=sys.stderr,
                flush=True,
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar.close()


def figures(logs: Mapping[str, float]) -> dict[str, str]:
    """The figures of a step to show, by their displayed names."""
    return {
        shown: format(logs[name], form) for name, (shown, form) in SHOWN.items() if name in logs
    }


def progress_line(
    what: str, step: int, steps: int, shown: Mapping[str, str], seconds_per_step: float
) -> str:
    """`train perpo: step 120 of 375, loss 0.51, ..., 4 min left`."""
    listed = "".join(f", {name} {value}" for name, value in shown.items())
    left = _time((steps - step) * seconds_per_step)
    return f"{what}: step {step:,} of {steps:,}{listed}, {left} left"


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
