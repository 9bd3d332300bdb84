"""The interface of a backend: rows of prompts in, lists of completions out.

transformers_backend.py runs in this process and needs nothing else; vllm_backend.py drives vLLM's
engine; openai_backend.py sends requests to any OpenAI-compatible server. All draw from
softmax(logits / T) and nothing else unless the run's configuration asks for more, or decode
greedily.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from perpo_pipeline.config.inference import Decoding, InferenceConfig
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.vlm.completion import Completion

if TYPE_CHECKING:
    from perpo_pipeline.vlm.files import ResolvedModel

Row = Mapping[str, Any]
Size = tuple[int, int]


@dataclass(frozen=True)
class SampledList:
    """The N completions of one prompt.

    `resized` is the (width, height) of the image as the vision tower sees it, None if the image is
    cut into tiles.
    """

    completions: Sequence[Completion]
    resized: Size | None


@dataclass(frozen=True)
class Failure:
    """A prompt that could not be answered, and why."""

    reason: str


# Called with the index of a row and its result.
OnDone = Callable[[int, SampledList | Failure], None]


@dataclass(frozen=True)
class BackendSetup:
    """Everything that a backend needs to open; it can be sent to another process.

    `settings` is the section of the stage, whose `backend` is not `auto`. No prompt has more than
    `most_images` images.
    """

    model: ModelConfig
    resolved: "ResolvedModel"
    model_settings: Mapping[str, Any]
    settings: InferenceConfig
    scratch: Path
    adapter: Path | None = None
    most_images: int = 1

    @property
    def decoding(self) -> Decoding:
        """How the completions of a prompt are chosen, with the longest answers of all tasks."""
        return self.settings.decoding()

    def longest(self, row: Row) -> int:
        """`max_new_tokens` for a row's task."""
        return self.settings.longest(row["task"] if self.settings.differs_by_task else None)


class Backend(Protocol):
    """Draws completions; made from a `BackendSetup`.

    `prompts_per_call` is how many prompts `sample` takes at once, or by task how many of each; 0
    means a whole part. If
    `decoding.is_greedy`, the list of a prompt is one completion, and seeds have no effect.
    `answers_alone` says that a prompt's answer is not computed together with those of the others of
    its call, so that it may be kept where the call is interrupted.
    """

    prompts_per_call: int | Mapping[str, int]
    answers_alone: bool

    def notes(self) -> dict[str, Any]:
        """Messages that the user sees once and the manifest records, each under a short name."""
        ...

    def expect(self, rows: Sequence[Row]) -> None:
        """Begin to read the images of rows that a later call of `sample` gets, the same objects.

        It may do nothing. Not called if `prompts_per_call` is 0.
        """
        ...

    def sample(
        self, rows: Sequence[Row], seeds: Sequence[int], on_done: OnDone | None = None
    ) -> list[SampledList | Failure]:
        """Draw the list of each prompt; returns them in the order of `rows`.

        `rows` have the columns `part_sampler.PROMPT_COLUMNS`; `seeds` holds one 63-bit seed per
        row. `on_done` is called once per row, as soon as its result is known. Where
        `settings` differ by task and `prompts_per_call` is not 0, all rows are of one task.

        A fault of one prompt becomes a `Failure`. A fault of all prompts (the model, the server,
        the settings) raises a PerpoError.
        """
        ...

    def close(self) -> None:
        """Free the model's memory; the backend is not used after this."""
        ...
