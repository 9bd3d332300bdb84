"""The progress bar of `perpo sample` and `perpo eval`."""

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


class Progress:
    """A bar with prompts and tokens per second, time left, and a preview's figures."""

    def __init__(
        self, run: Run, title: str, num_prompts: int, *, done: int, preview: Preview | None = None
    ) -> None:
        self.run, self.title, self.num_prompts, self.done = run, title, num_prompts, done
        self.preview = preview
        self.bar: Any = None
        self.prompts = self.tokens = 0

    def begin(self) -> None:
        """Open the bar and start its clock, after the model is loaded."""
        self.bar = self.run.bar(
            self.title, total=self.num_prompts, initial=self.done, unit="prompt"
        )
        self.started = time.monotonic()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def add(self, prompts: Sequence[Row], rows: Sequence[Row]) -> None:
        """Count prompts that are done, and preview their rows."""
        self.show(prompts, rows)
        self.update(self.prompts + len(prompts), self.tokens + count_tokens(rows))

    def show(self, prompts: Sequence[Row], rows: Sequence[Row]) -> None:
        """Preview the rows of prompts that are counted elsewhere."""
        if self.preview is not None:
            self.preview.add(prompts, rows)

    def update(self, prompts: int, tokens: int) -> None:
        """Show these totals since the clock started."""
        new, self.prompts, self.tokens = prompts - self.prompts, prompts, tokens
        seconds = max(time.monotonic() - self.started, 1e-9)
        figures = {} if self.preview is None else self.preview.figures()
        shown = {"tokens/s": f"{tokens / seconds:.0f}", **figures}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(new)
