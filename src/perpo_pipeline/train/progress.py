"""A training's progress: a bar on a terminal, a line per minute in a log."""

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from perpo_pipeline.bars import Bar

# name in the log -> displayed name and format
SHOWN = {
    "loss": ("loss", ".3g"),
    "reward_accuracy": ("accuracy", ".2f"),
    "tokens_per_s": ("tokens/s", ",.0f"),
}


class Progress(TrainerCallback):
    """Shows loss, reward accuracy, tokens per second and time left on stderr, unless `quiet`.

    On a terminal it is a bar; elsewhere, as under a scheduler, a line per minute and a last one.
    The first step, which warms up and may compile, only starts the clock of the time left.
    """

    def __init__(self, what: str, quiet: bool) -> None:
        self.what, self.quiet = what, quiet
        self.bar: Bar | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar = Bar(
            self.what,
            state.max_steps,
            initial=state.global_step,
            unit="steps",
            doing="the first step",
            quiet=self.quiet or not state.is_world_process_zero,
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.bar is None or "loss" not in (logs or {}):  # the Trainer's last word
            return
        self.bar.update(state.global_step - self.bar.n, figures(logs or {}))
        if state.global_step == state.max_steps:
            self.bar.print_last_line()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Clear the bar, also where the training ends early."""
        if self.bar is not None:
            self.bar.close()


def figures(logs: Mapping[str, float]) -> dict[str, str]:
    """The figures of a step to show, by their displayed names."""
    return {
        shown: format(logs[name], form) for name, (shown, form) in SHOWN.items() if name in logs
    }
