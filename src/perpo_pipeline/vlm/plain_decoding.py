"""Plain decoding: transformers' own `generate`, one prompt per call, one copy per completion.

For models whose completions cannot share a prompt, or are not proven to (vlm/ways.py). It is slow,
because every completion holds the whole prompt. Only the distribution is ours: softmax(logits / T)
without image placeholders, see `LogprobRecorder`.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from perpo_pipeline.errors import InputError
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm, base_model, type_arguments
from perpo_pipeline.vlm.tensors import cast_tensors, stack_image_tensors

# Token ids of N completions, and their log-probabilities in nats.
Drawn = tuple[list[list[int]], list[float]]


def why_slow(vlm: Vlm) -> str:
    """The message for a user whose model is sampled this way."""
    return (
        f"this '{vlm.family.name}' model reads the prompt once per completion (transformers' "
        f"generate), which is slow: {vlm.way.why}"
    )


def draw_list(
    vlm: Vlm,
    prompt: EncodedPrompt,
    *,
    num_samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    top_k: int | None = None,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
) -> Drawn:
    """Draw N completions from softmax(logits / temperature); `sample_lists` for one prompt."""
    how = {
        "do_sample": True,
        "temperature": float(temperature),
        "top_k": top_k or 0,
        "top_p": top_p,
    }
    with _seeded(vlm.device, seed):
        return _generate(
            vlm, prompt, num_samples, max_new_tokens, how, repetition_penalty=repetition_penalty
        )


def decode_greedily(vlm: Vlm, prompt: EncodedPrompt, *, max_new_tokens: int) -> Drawn:
    """One completion, with the most likely token at every step."""
    return _generate(vlm, prompt, 1, max_new_tokens, {"do_sample": False})


def force_list(vlm: Vlm, prompt: EncodedPrompt, answers: Sequence[Sequence[int]]) -> list[float]:
    """Log-probabilities in nats of N given answers, token by token in transformers' own cache.

    Each answer must end with an end token, and hold none before.
    """
    longest = max(map(len, answers))
    rows = [[*answer, *[vlm.pad_token_id] * (longest - len(answer))] for answer in answers]
    given = torch.tensor(rows, device=vlm.device)
    how = {"do_sample": False}
    return _generate(vlm, prompt, len(answers), longest, how, LogprobForcer(given))[1]


class LogprobRecorder:
    """A logits processor that bans the image placeholders and records log-probabilities.

    `logps` holds one (N,) per step: each token's log-probability at T = 1 under the full
    vocabulary. It keeps the logits of one step only; `generate`'s `output_logits` keeps all steps.
    """

    def __init__(self, banned: tuple[int, ...]) -> None:
        self.banned = banned
        self.logps: list[Tensor] = []
        self._logits: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.record_last(input_ids)
        self._logits = scores
        banned = torch.tensor(self.banned, device=scores.device).long()
        return scores.index_fill(-1, banned, -torch.inf)

    def record_last(self, input_ids: Tensor) -> None:
        """Record the newest token of each row (N, T) under the logits it was drawn from."""
        if self._logits is not None:
            chosen = self._logits.gather(-1, input_ids[:, -1:]).squeeze(-1)
            self.logps.append(chosen - self._logits.logsumexp(-1))


class LogprobForcer(LogprobRecorder):
    """Records the log-probabilities of given tokens (N, T), the only ones that it allows."""

    def __init__(self, given: Tensor) -> None:
        super().__init__(())
        self.given = given

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        super().__call__(input_ids, scores)
        tokens = self.given[:, len(self.logps), None]
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, 0.0)


def _generate(
    vlm: Vlm,
    prompt: EncodedPrompt,
    num_samples: int,
    max_new_tokens: int,
    how: dict[str, Any],
    recorder: LogprobRecorder | None = None,
    repetition_penalty: float = 1.0,
) -> Drawn:
    from transformers import (
        GenerationConfig,
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
    )

    model, recorder = base_model(vlm.model), recorder or LogprobRecorder(vlm.banned_token_ids)
    inputs = _inputs(vlm, [prompt] * num_samples)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        **how,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(vlm.eos_token_ids),
        pad_token_id=vlm.pad_token_id,
    )
    processors: list[Any] = [recorder]
    if repetition_penalty != 1.0:  # in `config` it would come before the recorder
        processors.append(RepetitionPenaltyLogitsProcessor(float(repetition_penalty)))
    with _without_generation_config(model):
        rows = model.generate(
            **inputs, generation_config=config, logits_processor=LogitsProcessorList(processors)
        )
    if not torch.equal(rows[:, : prompt.num_tokens].cpu(), prompt.input_ids.expand(len(rows), -1)):
        raise InputError(
            f"`generate` of this '{vlm.family.name}' model does not return the prompt before the "
            "answer, so the model cannot be sampled"
        )
    recorder.record_last(rows)
    logps = torch.stack(recorder.logps, dim=1).double().cpu()
    drawn = rows[:, prompt.num_tokens :].tolist()
    ids = [_until_end(row, set(vlm.eos_token_ids)) for row in drawn]
    return ids, [float(row[: len(y)].sum()) for row, y in zip(logps, ids, strict=True)]


def _inputs(vlm: Vlm, copies: list[EncodedPrompt]) -> dict[str, Tensor]:
    """The inputs of `generate`, with one copy of the prompt and its image per completion.

    `num_return_sequences` would make the copies, but wrongly for some families (Qwen3.5 and others
    in transformers 5.19): it repeats each patch or tile of an image in place, as A, A, B, B.
    """
    ids = torch.stack([prompt.input_ids for prompt in copies])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        **cast_tensors(stack_image_tensors(copies), vlm.dtype),
    }
    types = [prompt.token_types for prompt in copies if prompt.token_types is not None]
    if types:
        inputs |= type_arguments(base_model(vlm.model), torch.stack(types))
    return {name: value.to(vlm.device) for name, value in inputs.items()}


@contextlib.contextmanager
def _without_generation_config(model: Any) -> Iterator[None]:
    """Hide the model's generation_config.json, from which `generate` takes every unset parameter.

    A list of neutral values would not be enough: None counts as unset, and the file may hold any
    key (stop_strings, min_p, guidance_scale, ...).
    """
    from transformers import GenerationConfig

    given = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = given


@contextlib.contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generator of `device`, which `generate` draws from; restore it afterwards."""
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng([torch.cuda.current_device()] if on_cuda else []):
        if on_cuda:
            torch.cuda.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)
        yield


def _until_end(row: list[int], ends: set[int]) -> list[int]:
    """The tokens up to the first end token, which is kept; padding comes after."""
    stop = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
    return row[: stop + 1]
