"""The progress bar of `perpo sample`."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from perpo_pipeline.inference.part_sampler import Row, count_tokens
from perpo_pipeline.run import Run


class Preview(Protocol):
    """Figures about the rows that have arrived, for the bar."""

    def add(self, prompts: Sequence[Row], rows: Sequence[Row]) -> None:
        """Take up the rows that some prompts gave."""
        ...

    def figures(self) -> Mapping[str, str]:
        """The figures so far, each under its name."""
        ...


class SampleProgress:
    """A bar with prompts and tokens per second, time left, and a preview of the rewards."""

    def __init__(
        self, run: Run, split: str, num_prompts: int, *, done: int, preview: Preview
    ) -> None:
        self.run, self.split, self.num_prompts, self.done = run, split, num_prompts, done
        self.preview = preview
        self.bar: Any = None
        self.prompts = self.tokens = 0

    def begin(self) -> None:
        """Open the bar and start its clock, after the model is loaded."""
        count = self.run.config.sample.num_samples
        self.bar = self.run.bar(
            f"sample {self.split} ({count} per prompt)",
            total=self.num_prompts,
            initial=self.done,
            unit="prompt",
        )
        self.started = time.monotonic()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def add(self, prompts: Sequence[Row], rows: Sequence[Row]) -> None:
        """Count prompts that are done, and preview the rewards of their rows."""
        self.preview.add(prompts, rows)
        self.update(self.prompts + len(prompts), self.tokens + count_tokens(rows))

    def update(self, prompts: int, tokens: int) -> None:
        """Show these totals since the clock started."""
        new, self.prompts, self.tokens = prompts - self.prompts, prompts, tokens
        seconds = max(time.monotonic() - self.started, 1e-9)
        shown = {"tokens/s": f"{tokens / seconds:.0f}", **self.preview.figures()}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(new)
