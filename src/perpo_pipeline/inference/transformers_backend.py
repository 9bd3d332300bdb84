"""The backend that runs in this process: transformers, through vlm/decoding.py."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from perpo_pipeline.inference.backend import BackendSetup, Failure, OnDone, Row, SampledList
from perpo_pipeline.inference.prompt_tokens import answer_too_long, prompt_too_long
from perpo_pipeline.vlm import plain_decoding as plain
from perpo_pipeline.vlm.chat import check_thinking
from perpo_pipeline.vlm.completion import Completion
from perpo_pipeline.vlm.decoding import greedy_decode, sample_lists
from perpo_pipeline.vlm.inputs import RowError, context_length, encode_row, open_model
from perpo_pipeline.vlm.merging import merge_in_memory
from perpo_pipeline.vlm.models import EncodedPrompt


class TransformersBackend:
    """Draws completions with the model in this process; needs only torch and transformers."""

    answers_alone = False  # the prompts of a call are padded and decoded together

    def __init__(self, setup: BackendSetup) -> None:
        vlm = open_model(
            setup.model, setup.resolved, setup.model_settings, setup.scratch, setup.adapter
        )
        check_thinking(vlm, setup.model.answer.thinking)
        self.vlm, self.setup = merge_in_memory(vlm), setup
        self.context = context_length(vlm)
        self.prompts_per_call = setup.settings.batch_size

    def notes(self) -> dict[str, Any]:
        """Why sampling is slow, if the model cannot share a prompt between completions."""
        return {} if self.vlm.shares_prefix else {"slow": plain.why_slow(self.vlm)}

    def sample(
        self, rows: Sequence[Row], seeds: Sequence[int], on_done: OnDone | None = None
    ) -> list[SampledList | Failure]:
        """Draw the list of each prompt; `on_done` is called after all of them are drawn."""
        found: dict[int, SampledList | Failure] = {}
        encoded: dict[int, EncodedPrompt] = {}
        for index, row in enumerate(rows):
            prompt = self._encode(row)
            if isinstance(prompt, Failure):
                found[index] = prompt
            else:
                encoded[index] = prompt
        lists = self._draw(list(encoded.values()), [seeds[index] for index in encoded])
        for (index, prompt), completions in zip(encoded.items(), lists, strict=True):
            longest = max(len(one.token_ids) for one in completions)
            found[index] = answer_too_long(prompt.num_tokens, longest, self.context) or SampledList(
                completions, prompt.resized
            )
        results = [found[index] for index in range(len(rows))]
        if on_done is not None:
            for index, result in enumerate(results):
                on_done(index, result)
        return results

    def close(self) -> None:
        """Free the model."""
        del self.vlm

    def _encode(self, row: Row) -> EncodedPrompt | Failure:
        try:
            prompt = encode_row(self.vlm, row, self.setup.model_settings["preprocess"])
        except RowError as error:
            return Failure(error.reason)
        return prompt_too_long(prompt.num_tokens, self.context) or prompt

    def _draw(
        self, prompts: Sequence[EncodedPrompt], seeds: Sequence[int]
    ) -> list[list[Completion]]:
        how = self.setup.decoding
        if how.is_greedy:
            answers = greedy_decode(self.vlm, prompts, max_new_tokens=how.max_new_tokens)
            return [[answer] for answer in answers]
        return sample_lists(self.vlm, prompts, seeds=seeds, **asdict(how))
