"""The progress of `perpo sample` and `perpo eval`, in prompts."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from perpo_pipeline.bars import Bar
from perpo_pipeline.config.inference import InferenceConfig
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
    """A bar with the time left, prompts and tokens per second, and a preview's figures."""

    def __init__(
        self,
        run: Run,
        title: str,
        num_prompts: int,
        settings: InferenceConfig,
        *,
        done: int,
        preview: Preview | None = None,
    ) -> None:
        self.run, self.title, self.num_prompts, self.done = run, title, num_prompts, done
        self.settings, self.preview = settings, preview
        self.bar: Bar | None = None
        self.prompts = self.tokens = 0

    def open(self) -> None:
        """Open the bar, before the model is loaded."""
        self.bar = self.run.bar(
            self.title,
            self.num_prompts,
            initial=self.done,
            unit="prompts",
            wave=prompts_side_by_side(self.settings),
            doing="loading the model"
            if self.settings.backend != "openai"
            else "asking the server which model it has",
        )

    def begin(self) -> None:
        """Say that the first prompts are being answered."""
        if self.bar is not None:
            self.bar.phase("answering the first prompts")

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
        """Show these totals of this sitting."""
        if self.bar is None:
            return
        new, self.prompts, self.tokens = prompts - self.prompts, prompts, tokens
        figures = {} if self.preview is None else dict(self.preview.figures())
        per_s = self.bar.speed.per_s
        if per_s and prompts:
            figures = {"tokens/s": f"{tokens / prompts * per_s:,.0f}", **figures}
        self.bar.update(new, figures)


def prompts_side_by_side(settings: InferenceConfig) -> int:
    """How many prompts finish together or nearly so; 1 where that varies, as with vLLM."""
    if settings.backend == "openai":
        return settings.concurrency
    processes = (settings.num_actors or 1) if settings.engine == "ray" else settings.num_gpus
    return settings.largest_batch * processes if settings.backend == "transformers" else 1
