"""Sample the plain way: transformers' own `generate`, one prompt a call, a copy a completion.

For models whose prompts cannot be shared, or never were: families outside FAMILIES, and layers
other than full attention. Slow (every completion holds the whole prompt), but nothing in it is ours
except what it draws from: softmax(logits / T) without image placeholders, see `Listener`.
"""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from perpo_pipeline.errors import InputError
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm, base_model
from perpo_pipeline.vlm.tensors import cast_tensors, stack_image_tensors

# Token ids of N completions, and their log-probabilities in nats.
Drawn = tuple[list[list[int]], list[float]]


def explain(vlm: Vlm) -> str:
    """What a user is told about a model that is sampled this way."""
    why = (
        "the family was never tried"
        if vlm.full_attention
        else "its layers are not all full attention"
    )
    return (
        f"this '{vlm.family.name}' model reads the prompt once a completion (transformers' "
        f"generate), which is slow: {why}"
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
    """Draw N completions from softmax(logits / temperature); like `sample_lists` for one prompt."""
    how = {
        "do_sample": True,
        "temperature": float(temperature),
        "top_k": top_k or 0,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
    }
    with _own_randomness(vlm.device, seed):
        return _generate(vlm, prompt, num_samples, max_new_tokens, how)


def most_likely(vlm: Vlm, prompt: EncodedPrompt, *, max_new_tokens: int) -> Drawn:
    """One completion of the most likely token at every step."""
    return _generate(vlm, prompt, 1, max_new_tokens, {"do_sample": False})


class Listener:
    """A logits processor that bans the image placeholders and measures what is drawn.

    `logps`: one (N,) a step, each token's log-probability at T = 1 under the full vocabulary.
    Logits of a single step are held: `generate`'s own `output_logits` keeps those of all.
    """

    def __init__(self, banned: tuple[int, ...]) -> None:
        self.banned = banned
        self.logps: list[Tensor] = []
        self._logits: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.note_last(input_ids)
        self._logits = scores
        banned = torch.tensor(self.banned, device=scores.device).long()
        return scores.index_fill(-1, banned, -torch.inf)

    def note_last(self, input_ids: Tensor) -> None:
        """Measure the newest token of each row (N, T) under the logits it was drawn from."""
        if self._logits is not None:
            chosen = self._logits.gather(-1, input_ids[:, -1:]).squeeze(-1)
            self.logps.append(chosen - self._logits.logsumexp(-1))


def _generate(
    vlm: Vlm, prompt: EncodedPrompt, num_samples: int, max_new_tokens: int, how: dict[str, Any]
) -> Drawn:
    from transformers import GenerationConfig, LogitsProcessorList

    model, listener = base_model(vlm.model), Listener(vlm.banned_token_ids)
    inputs = _inputs(vlm, [prompt] * num_samples)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        **how,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(vlm.eos_token_ids),
        pad_token_id=vlm.pad_token_id,
    )
    with _no_other_settings(model):
        rows = model.generate(
            **inputs, generation_config=config, logits_processor=LogitsProcessorList([listener])
        )
    if not torch.equal(rows[:, : prompt.num_tokens].cpu(), prompt.input_ids.expand(len(rows), -1)):
        raise InputError(
            f"A '{vlm.family.name}' model's `generate` does not give the prompt back before the "
            "answer: it cannot be sampled here."
        )
    listener.note_last(rows)
    logps = torch.stack(listener.logps, dim=1).double().cpu()
    drawn = rows[:, prompt.num_tokens :].tolist()
    ids = [_until_end(row, set(vlm.eos_token_ids)) for row in drawn]
    return ids, [float(row[: len(y)].sum()) for row, y in zip(logps, ids, strict=True)]


def _inputs(vlm: Vlm, copies: list[EncodedPrompt]) -> dict[str, Tensor]:
    """What `generate` reads; every completion has a copy of the prompt and its image.

    `num_return_sequences` would copy by itself, but wrongly for some families (Qwen3.5 and others
    in transformers 5.19): it repeats each patch or tile of an image in its place, A, A, B, B.
    """
    ids = torch.stack([prompt.input_ids for prompt in copies])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        **cast_tensors(stack_image_tensors(copies), vlm.dtype),
    }
    takes = inspect.signature(base_model(vlm.model).forward).parameters
    types = [prompt.token_types for prompt in copies if prompt.token_types is not None]
    if types and "mm_token_type_ids" in takes:
        inputs["mm_token_type_ids"] = torch.stack(types)
    return {name: value.to(vlm.device) for name, value in inputs.items()}


@contextlib.contextmanager
def _no_other_settings(model: Any) -> Iterator[None]:
    """Hide the model's generation_config.json: `generate` takes from it whatever is not set.

    No list of neutral values would do: None counts as not set, and any key may be in the file
    (stop_strings, min_p, guidance_scale, ...).
    """
    from transformers import GenerationConfig

    given = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = given


@contextlib.contextmanager
def _own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generator of `device`, the only one `generate` draws from; restored after."""
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
