"""The rows of a part's prompts, drawn by a backend."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from perpo_pipeline.sample.backend import Backend, BackendSetup, Failure, SampledList
from perpo_pipeline.seeds import derive_seed
from perpo_pipeline.store.schemas import PROMPTS

PROMPT_COLUMNS = PROMPTS.pick("prompt_id", "image", "image_sha256", "prompt")


Row = dict[str, Any]


# Is told prompts and their rows.
Tell = Callable[[Sequence[Row], Sequence[Row]], None]


def open_backend(setup: BackendSetup) -> Backend:
    """Load the model, or reach the server, of the backend that the setup names."""
    if setup.sample.backend == "vllm":
        from perpo_pipeline.sample.vllm_backend import VllmBackend

        return VllmBackend(setup)
    if setup.sample.backend == "openai":
        from perpo_pipeline.sample.openai_backend import OpenAIBackend

        return OpenAIBackend(setup)
    from perpo_pipeline.sample.transformers_backend import TransformersBackend

    return TransformersBackend(setup)


class PartSampler:
    """A backend with the run's seed: the rows of a part's prompts, a call's worth at a time."""

    def __init__(self, setup: BackendSetup, run_seed: int) -> None:
        self.backend, self.run_seed = open_backend(setup), run_seed

    def sample(self, prompts: Sequence[Row], tell: Tell) -> list[Row]:
        """SAMPLES rows, and ERRORS rows of what failed; `tell` gets those of each prompt."""
        step = self.backend.prompts_a_call or len(prompts)
        rows: list[Row] = []
        for start in range(0, len(prompts), step):
            rows += self._sample_call(prompts[start : start + step], tell)
        return rows

    def _sample_call(self, prompts: Sequence[Row], tell: Tell) -> list[Row]:
        seeds = [derive_seed(self.run_seed, "sample", row["prompt_id"]) for row in prompts]
        rows: dict[int, list[Row]] = {}

        def done(index: int, found: SampledList | Failure) -> None:
            rows[index] = list(_rows_of(prompts[index]["prompt_id"], seeds[index], found))
            tell([prompts[index]], rows[index])

        self.backend.sample(prompts, seeds, done)
        return [row for index in range(len(prompts)) for row in rows[index]]


def _rows_of(prompt_id: str, seed: int, found: SampledList | Failure) -> Iterator[Row]:
    if isinstance(found, Failure):
        yield {"prompt_id": prompt_id, "reason": found.reason}
        return
    for sample_id, completion in enumerate(found.completions):
        yield {
            "prompt_id": prompt_id,
            "sample_id": sample_id,
            "completion": completion.text,
            "completion_token_ids": completion.token_ids,
            "finish_reason": completion.finish_reason,
            "seed": seed,
            "sampler_logprob": completion.sampler_logprob,
            "resized": found.resized,
        }


def count_tokens(rows: Iterable[Row]) -> int:
    """Tokens of the completions among SAMPLES and ERRORS rows."""
    return sum(len(row["completion_token_ids"]) for row in rows if "reason" not in row)
