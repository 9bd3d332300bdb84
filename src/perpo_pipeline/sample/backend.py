"""What a sampling backend is: prompts' rows in, lists of completions out.

transformers_backend.py runs in this process and needs nothing else; vllm_backend.py drives vLLM's
engine; openai_backend.py speaks to any OpenAI-compatible server. All draw from softmax(logits / T)
and nothing else unless the run's configuration asks for more.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from perpo_pipeline.config.run import ModelConfig, SampleConfig
from perpo_pipeline.vlm.completion import Completion

if TYPE_CHECKING:
    from perpo_pipeline.vlm.files import ResolvedModel

Row = Mapping[str, Any]
Size = tuple[int, int]


@dataclass(frozen=True)
class SampledList:
    """The N completions of one prompt; `resized` (width, height) of the image as the vision tower
    sees it, None where the image is cut into tiles."""

    completions: Sequence[Completion]
    resized: Size | None


@dataclass(frozen=True)
class Failure:
    """A prompt that could not be sampled, and why."""

    reason: str


# Is told the index of a row and its result.
Done = Callable[[int, SampledList | Failure], None]


@dataclass(frozen=True)
class BackendSetup:
    """All that a backend is opened from; it can be sent to another process."""

    model: ModelConfig
    resolved: "ResolvedModel"
    model_settings: Mapping[str, Any]
    sample: SampleConfig
    scratch: Path
    adapter: Path | None = None


class Backend(Protocol):
    """Draws completions; made from a `BackendSetup`.

    `prompts_a_call` is how many prompts it takes at a time, 0 for a whole part.
    """

    prompts_a_call: int

    def notes(self) -> dict[str, Any]:
        """What the user should be told once, by a short name; empty where there is nothing."""
        ...

    def sample(
        self, rows: Sequence[Row], seeds: Sequence[int], done: Done | None = None
    ) -> list[SampledList | Failure]:
        """The list of each prompt, in order. `rows` have the columns prompt_id, image,
        image_sha256 and prompt; `seeds` one 63-bit seed each. `done` is called once a row, as soon
        as its result is known.

        What is wrong with a single prompt is a `Failure`; a PerpoError is raised for what is wrong
        with all (the model, the server, the settings).
        """
        ...
