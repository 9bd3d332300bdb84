"""Samples one part: seeds for its prompts, calls to the backend, rows for the artifact."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

from perpo_pipeline.config.by_task import of_task
from perpo_pipeline.inference.backend import BackendSetup, Failure, SampledList
from perpo_pipeline.inference.backends import open_backend
from perpo_pipeline.seeds import derive_seed
from perpo_pipeline.store.schemas import PROMPTS

PROMPT_COLUMNS = PROMPTS.pick("prompt_id", "place", "task", "prompt", "history", role="image")
PLACE_IN_PART = "place_in_part"

Row = dict[str, Any]

# Called with some prompts and the rows that they gave.
OnRows = Callable[[Sequence[Row], Sequence[Row]], None]
# Called with the SAMPLES rows of prompts that a later sitting need not answer again.
OnKept = Callable[[Sequence[Row]], None]


class PartSampler:
    """A backend and the run's seed; `sample` turns the prompts of a part into rows."""

    def __init__(self, setup: BackendSetup, run_seed: int) -> None:
        self.backend, self.run_seed = open_backend(setup), run_seed
        self.by_task = setup.settings.differs_by_task

    def close(self) -> None:
        """Close the backend, which frees the memory of its model."""
        self.backend.close()

    @property
    def answers_whole_parts(self) -> bool:
        """Whether a part that is begun must be finished, or else be answered again as a whole."""
        return not (self.backend.prompts_per_call or self.backend.answers_alone)

    def sample(
        self, prompts: Sequence[Row], on_rows: OnRows, on_kept: OnKept | None = None
    ) -> list[Row]:
        """SAMPLES rows, and ERRORS rows for prompts that failed; `on_rows` gets those per prompt.

        Calls the backend with prompts that it may answer together. PLACE_IN_PART decides which
        prompts share a call, whatever earlier sittings have answered, so that these make no
        difference to a batch; where settings differ by task, so does the task. `on_kept` gets the
        rows of each call once it is done, or of each prompt if the backend answers it independently
        of the others.
        """
        if not self.backend.prompts_per_call:
            return self._sample_call(prompts, on_rows, on_kept)
        sharing: dict[tuple[str, int], list[Row]] = {}
        for prompt in prompts:
            sharing.setdefault(self._call_of(prompt), []).append(prompt)
        calls = list(sharing.values())
        rows: list[Row] = []
        self.backend.expect(calls[0] if calls else ())
        for call, following in zip_longest(calls, calls[1:], fillvalue=()):
            self.backend.expect(following)
            rows += self._sample_call(call, on_rows, on_kept)
        return rows

    def _call_of(self, prompt: Row) -> tuple[str, int]:
        """What the prompts of one call of the backend share."""
        task = prompt["task"] if self.by_task else ""
        return task, prompt[PLACE_IN_PART] // of_task(self.backend.prompts_per_call, task)

    def _sample_call(
        self, prompts: Sequence[Row], on_rows: OnRows, on_kept: OnKept | None
    ) -> list[Row]:
        seeds = [derive_seed(self.run_seed, "sample", row["prompt_id"]) for row in prompts]
        rows: dict[int, list[Row]] = {}

        def collect(index: int, found: SampledList | Failure) -> None:
            rows[index] = list(_rows_of(prompts[index], seeds[index], found))
            on_rows([prompts[index]], rows[index])
            if self.backend.answers_alone:
                keep(rows[index])

        def keep(done: Sequence[Row]) -> None:
            answered = [row for row in done if "reason" not in row]
            if answered and on_kept is not None:
                on_kept(answered)

        self.backend.sample(prompts, seeds, collect)
        found = [row for index in range(len(prompts)) for row in rows[index]]
        if not self.backend.answers_alone:
            keep(found)
        return found


class LastSampler:
    """Keeps the last sampler open, so that artifacts of one model load it once."""

    def __init__(self) -> None:
        self._open: tuple[BackendSetup, int, PartSampler] | None = None

    def get(self, setup: BackendSetup, run_seed: int) -> PartSampler:
        """The open sampler if it was made from these; else a new one, and the old is closed."""
        if self._open is None or self._open[:2] != (setup, run_seed):
            self.close()
            self._open = setup, run_seed, PartSampler(setup, run_seed)
        return self._open[2]

    def close(self) -> None:
        """Close the open sampler, if there is one."""
        if self._open is not None:
            sampler, self._open = self._open[2], None
            sampler.close()


def _rows_of(prompt: Row, seed: int, found: SampledList | Failure) -> Iterator[Row]:
    prompt_id = prompt["prompt_id"]
    if isinstance(found, Failure):
        yield {"prompt_id": prompt_id, "place": prompt["place"], "reason": found.reason}
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
