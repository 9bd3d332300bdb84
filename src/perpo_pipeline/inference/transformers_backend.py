"""The backend that runs in this process: transformers, through vlm/decoding.py."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from perpo_pipeline.config.inference import InferenceConfig
from perpo_pipeline.errors import ConfigError, first_line
from perpo_pipeline.inference.ahead import Ahead, reads_ahead
from perpo_pipeline.inference.backend import BackendSetup, Failure, OnDone, Row, SampledList
from perpo_pipeline.inference.prompt_tokens import answer_too_long, prompt_too_long
from perpo_pipeline.vlm import plain_decoding as plain
from perpo_pipeline.vlm.chat import check_thinking
from perpo_pipeline.vlm.completion import Completion
from perpo_pipeline.vlm.decoding import greedy_decode, sample_lists
from perpo_pipeline.vlm.inputs import RowError, context_length, encode_row, open_model
from perpo_pipeline.vlm.merging import merge_in_memory
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm
from perpo_pipeline.vlm.refusals import ran_out_of_memory
from perpo_pipeline.vlm.tensors import cast_tensors

if TYPE_CHECKING:
    from PIL.Image import Image


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
        self.ahead = None
        if reads_ahead(self.vlm.device.type):
            self.ahead = Ahead(partial(self._encode, _reader(self.vlm)))

    def notes(self) -> dict[str, Any]:
        """Why completions share a prompt, if no test covers the model; why sampling is slow, if
        they do not."""
        if not self.vlm.shares_prefix:
            return {"slow": plain.why_slow(self.vlm)}
        if self.vlm.is_tested:
            return {}
        return {"way": f"completions share their prompt: {self.vlm.way.why}"}

    def expect(self, rows: Sequence[Row]) -> None:
        """Begin to read the prompts of the next call (see `backend.Backend`); not on a CPU."""
        if self.ahead is not None:
            self.ahead.expect(rows)

    def sample(
        self, rows: Sequence[Row], seeds: Sequence[int], on_done: OnDone | None = None
    ) -> list[SampledList | Failure]:
        """Draw the list of each prompt; `on_done` is called after all of them are drawn."""
        found: dict[int, SampledList | Failure] = {}
        encoded: dict[int, EncodedPrompt] = {}
        for index, prompt in enumerate(self._read(rows)):
            if isinstance(prompt, Failure):
                found[index] = prompt
            else:
                encoded[index] = prompt
        lists = self._draw(list(encoded.values()), [seeds[index] for index in encoded], rows)
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
        """End the threads and free the model."""
        if self.ahead is not None:
            self.ahead.close()
            self.ahead = None
        del self.vlm

    def _read(self, rows: Sequence[Row]) -> list[EncodedPrompt | Failure]:
        if self.ahead is not None:
            return self.ahead.take(rows)
        return [self._encode(self.vlm, row) for row in rows]

    def _encode(
        self, reader: Vlm, row: Row, opened: "Callable[[], list[Image]] | None" = None
    ) -> EncodedPrompt | Failure:
        try:
            prompt = encode_row(reader, row, self.setup.model_settings["preprocess"], opened)
        except RowError as error:
            return Failure(error.reason)
        # Pixels in the model's dtype, as the model gets them: half the memory while they wait.
        small = replace(prompt, tensors=cast_tensors(prompt.tensors, reader.dtype))
        return prompt_too_long(prompt.num_tokens, self.context) or small

    def _draw(
        self, prompts: Sequence[EncodedPrompt], seeds: Sequence[int], rows: Sequence[Row]
    ) -> list[list[Completion]]:
        how = self.setup.decoding
        if rows:
            how = replace(how, max_new_tokens=max(map(self.setup.longest, rows)))
        with _memory_explained(self.setup.settings, len(prompts)):
            if how.is_greedy:
                answers = greedy_decode(self.vlm, prompts, max_new_tokens=how.max_new_tokens)
                return [[answer] for answer in answers]
            return sample_lists(self.vlm, prompts, seeds=seeds, **asdict(how))


@contextmanager
def _memory_explained(settings: InferenceConfig, num_prompts: int) -> Iterator[None]:
    """Name the settings to lower if memory runs out on prompts that are decoded together."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        lower = [settings.key("batch_size")]
        if num_prompts == 1:
            lower = [settings.key("max_new_tokens"), "model.max_pixels", "model.max_tiles"]
            lower += [settings.key("num_samples")] * (settings.decoding().num_samples > 1)
        together = "one prompt" if num_prompts == 1 else f"{num_prompts} prompts together"
        raise ConfigError(
            f"memory ran out while {together} {'was' if num_prompts == 1 else 'were'} answered: "
            f"{first_line(error)}",
            fix=f"lower {' or '.join(lower)} (the answers are then another version, begun from the "
            "first prompt); or, if another program took the memory, end it: the same command then "
            "goes on from what is kept",
        ) from error


def _reader(vlm: Vlm) -> Vlm:
    """The model with a processor and a tokenizer of its own, for the thread that reads."""
    processor, tokenizer = copy.deepcopy((vlm.processor, vlm.tokenizer))
    return replace(vlm, processor=processor, tokenizer=tokenizer)
