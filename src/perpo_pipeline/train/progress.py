"""What a training shows while it runs: a bar on a terminal, now and then a line in a log."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

LINE_EVERY_S = 60
# name in the log -> what it is called here, and its format
SHOWN = {
    "loss": ("loss", ".3g"),
    "reward_accuracy": ("accuracy", ".2f"),
    "tokens_per_s": ("tokens/s", ",.0f"),
}


class Progress(TrainerCallback):
    """Loss, reward accuracy, tokens a second and time left, on stderr; nothing if `quiet`.

    On a terminal a bar; elsewhere, as under a scheduler, a line a minute and one at the end.
    """

    def __init__(self, what: str, quiet: bool) -> None:
        self.what, self.quiet = what, quiet

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started_at, self.first_step = time.monotonic(), state.global_step
        self.told_at = self.started_at
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
        if self.writes_lines and (done or now - self.told_at >= LINE_EVERY_S):
            self.told_at = now
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
    """The figures of a step that are shown, by the names that they are shown under."""
    return {
        shown: format(logs[name], form) for name, (shown, form) in SHOWN.items() if name in logs
    }


def progress_line(
    what: str, step: int, steps: int, shown: Mapping[str, str], seconds_a_step: float
) -> str:
    """`train perpo: step 120 of 375, loss 0.51, ..., 4 min left`."""
    told = "".join(f", {name} {value}" for name, value in shown.items())
    return (
        f"{what}: step {step:,} of {steps:,}{told}, {_time((steps - step) * seconds_a_step)} left"
    )


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
