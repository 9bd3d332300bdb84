"""Draw lists of completions with transformers; each prompt and image is processed only once.

A row of the key-value cache holds the prompt once, followed by the tokens of all N completions.
Each step feeds one token per unfinished completion. A mask separates the completions, and positions
restart after the prompt: the layout of train/shared_prefix.py, grown token by token. Because the
prompt is not copied N times, a prompt takes memory for P + N*t tokens instead of N*(P + t).

Completions are drawn from softmax(logits / T) and nothing else: no top-k, no top-p, no penalty,
whatever the model's generation_config.json says. Only image placeholder tokens are banned. Each
prompt draws from its own seed, so batch size and order do not change its random numbers (float
rounding differs between batch shapes: about one token in a million may differ).

Models that cannot share a prefix, or were never tested to, go through plain_decoding.py, which does
the same more slowly.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.vlm import plain_decoding as plain
from perpo_pipeline.vlm.attention import (
    PADDING,
    PREFIX,
    additive_mask,
    causal_segments,
    visible_segments,
)
from perpo_pipeline.vlm.cache import GrowingCache
from perpo_pipeline.vlm.completion import Completion
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm, base_model
from perpo_pipeline.vlm.processors import decode_completions
from perpo_pipeline.vlm.tensors import cast_tensors, squeeze_positions, stack_image_tensors

FILLER = -2  # an unused query slot, in a row with fewer unfinished completions than others


# (logits (R, W, V), prompt of each row (R,), completion of each slot (R, W), step) -> ids (R, W)
Chooser = Callable[[Tensor, Tensor, Tensor, int], Tensor]


# (token ids so far (K, L), logits (K, V)) -> logits to draw from, temperature included
Warper = Callable[[Tensor, Tensor], Tensor]


@torch.inference_mode()
def sample_lists(
    vlm: Vlm,
    prompts: Sequence[EncodedPrompt],
    *,
    num_samples: int,
    temperature: float,
    max_new_tokens: int,
    seeds: Sequence[int],
    top_k: int | None = None,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
) -> list[list[Completion]]:
    """Draw `num_samples` completions for each prompt of one batch; `seeds` holds one per prompt.

    top_k, top_p and repetition_penalty are off by default. If given, they act as in transformers'
    `generate`, in its order: penalty, temperature, top-k, top-p.

    Raises ConfigError if num_samples or max_new_tokens is below 1 or the temperature is not above 0
    (use `greedy_decode` for that).
    """
    if not prompts:
        return []
    _check_sampling(prompts, seeds, num_samples, temperature, max_new_tokens)
    if not vlm.shares_prefix:
        draw_list = partial(
            plain.draw_list,
            vlm,
            num_samples=num_samples,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
        )
        drawn = [draw_list(p, seed=seed) for p, seed in zip(prompts, seeds, strict=True)]
        return [_completions(vlm, *one) for one in drawn]
    warp = _warper(temperature, top_k, top_p, repetition_penalty)
    uniforms = _uniforms(seeds, max_new_tokens, num_samples).to(vlm.device)
    draw = _drawer(uniforms, temperature if warp is None else 1.0)
    return _decode(vlm, prompts, num_samples, max_new_tokens, draw, warp)


def _check_sampling(
    prompts: Sequence[EncodedPrompt],
    seeds: Sequence[int],
    num_samples: int,
    temperature: float,
    max_new_tokens: int,
) -> None:
    if num_samples < 1:
        raise ConfigError(f"num_samples is {num_samples}; it must be at least 1")
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}; it must be above 0")
    if len(seeds) != len(prompts):
        raise ConfigError(f"got {len(seeds)} seeds for {len(prompts)} prompts")
    _check_limit(max_new_tokens)


def _check_limit(max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")


def _uniforms(seeds: Sequence[int], max_new_tokens: int, num_samples: int) -> Tensor:
    """(B, max_new_tokens, N) uniform random numbers, each prompt's from its own seed."""
    shape = (max_new_tokens, num_samples)
    return torch.stack(
        [
            torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for seed in seeds
        ]
    )


def _drawer(uniforms: Tensor, temperature: float) -> Chooser:
    """Draw from softmax(logits / temperature) by inverting its CDF at `uniforms`."""

    def draw(logits: Tensor, rows: Tensor, slots: Tensor, step: int) -> Tensor:
        # The weights are not normalised; u is scaled by their total instead.
        weights = logits.sub(logits.amax(-1, keepdim=True)).div_(temperature).exp_()
        cdf = weights.cumsum(-1, dtype=torch.float64)
        u = uniforms[rows, step].gather(1, slots)[..., None]
        # The first token whose cumulative weight exceeds u; a token of probability 0 never does.
        chosen = torch.searchsorted(cdf, u * cdf[..., -1:], right=True).squeeze(-1)
        return chosen.clamp_(max=logits.shape[-1] - 1)

    return draw


@torch.inference_mode()
def greedy_decode(
    vlm: Vlm, prompts: Sequence[EncodedPrompt], *, max_new_tokens: int
) -> list[Completion]:
    """One completion per prompt, with the most likely token at every step.

    Raises ConfigError if max_new_tokens is below 1.
    """
    _check_limit(max_new_tokens)
    if not vlm.shares_prefix:
        found = [plain.decode_greedily(vlm, p, max_new_tokens=max_new_tokens) for p in prompts]
        return [one for drawn in found for one in _completions(vlm, *drawn)]

    def most_likely(logits: Tensor, rows: Tensor, slots: Tensor, step: int) -> Tensor:
        return logits.argmax(-1)

    return [one for (one,) in _decode(vlm, prompts, 1, max_new_tokens, most_likely)]


def _decode(
    vlm: Vlm,
    prompts: Sequence[EncodedPrompt],
    num_samples: int,
    max_new_tokens: int,
    choose: Chooser,
    warp: Warper | None = None,
) -> list[list[Completion]]:
    """Grow every completion token by token; finished ones leave the batch."""
    if not prompts:
        return []
    batch = _Batch(vlm, prompts, num_samples, max_new_tokens)
    logits = batch.prefill(prompts)
    for step in range(max_new_tokens):
        allowed = batch.without_banned(logits)
        if warp is not None:
            allowed = warp(batch.token_ids(step), allowed.flatten(0, 1)).view_as(allowed)
        tokens = choose(allowed, batch.rows, batch.slots, step)
        batch.record(tokens, logits, step)
        if step + 1 == max_new_tokens or not batch.retire_finished():
            break
        logits = batch.advance(step)
    return batch.completions()


def _warper(
    temperature: float, top_k: int | None, top_p: float, repetition_penalty: float
) -> Warper | None:
    """transformers' own processors, in the order of its `generate`; None if none is needed."""
    if top_k is None and top_p == 1.0 and repetition_penalty == 1.0:
        return None
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    steps: list[Any] = [TemperatureLogitsWarper(temperature)]
    if repetition_penalty != 1.0:
        steps.insert(0, RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if top_k is not None:
        steps.append(TopKLogitsWarper(top_k))
    if top_p != 1.0:
        steps.append(TopPLogitsWarper(top_p))
    processors: Any = LogitsProcessorList(steps)
    return processors  # type: ignore[no-any-return]


def _completions(
    vlm: Vlm, ids: Sequence[Sequence[int]], logprobs: Sequence[float]
) -> list[Completion]:
    ends = set(vlm.eos_token_ids)
    texts = decode_completions(vlm.tokenizer, ids)
    return [
        Completion(
            text=text,
            token_ids=tuple(y),
            finish_reason="stop" if y[-1] in ends else "length",
            sampler_logprob=logprob,
        )
        for text, y, logprob in zip(texts, ids, logprobs, strict=True)
    ]


class _Batch:
    """The state of one batch: R running rows with W query slots each.

    `rows` (R,) is the prompt of each row, `slots` (R, W) the completion of each slot, `live` (R, W)
    is false for filler slots; `key_segments` (R, L) is the owner of each cache position.
    `output` (B, N, max) and `logprobs` (B, N) collect the results on the device.
    """

    def __init__(
        self, vlm: Vlm, prompts: Sequence[EncodedPrompt], num_samples: int, max_new_tokens: int
    ) -> None:
        count, device = len(prompts), vlm.device
        self.vlm, self.model = vlm, base_model(vlm.model)
        self.eos = torch.tensor(vlm.eos_token_ids, device=device)
        self.banned = torch.tensor(vlm.banned_token_ids, dtype=torch.long, device=device)
        self.next_position = torch.tensor([p.next_position for p in prompts], device=device)
        self.axes = prompts[0].positions.shape[0]
        self.rows = torch.arange(count, device=device)
        self.slots = torch.arange(num_samples, device=device).repeat(count, 1)
        self.live = torch.ones_like(self.slots, dtype=torch.bool)
        self.tokens = self.slots
        self.output = torch.full((count, num_samples, max_new_tokens), -1, device=device)
        self.logprobs = torch.zeros(count, num_samples, dtype=torch.float64, device=device)
        layers = self.model.config.get_text_config().num_hidden_layers
        # Most batches end before max_new_tokens: reserve 32 tokens per completion, then grow.
        self.cache = GrowingCache(layers, num_samples * min(max_new_tokens, 32))

    def prefill(self, prompts: Sequence[EncodedPrompt]) -> Tensor:
        """Read the left-padded prompts and their images; logits (B, N, V) of the first token."""
        width = max(p.num_tokens for p in prompts)
        device = self.vlm.device
        ids = torch.full((len(prompts), width), self.vlm.pad_token_id)
        segments = torch.full((len(prompts), width), PADDING)
        positions = torch.zeros((self.axes, len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, -prompt.num_tokens :] = prompt.input_ids
            segments[row, -prompt.num_tokens :] = PREFIX
            positions[:, row, -prompt.num_tokens :] = prompt.positions
        self.key_segments = segments.to(device)
        last = torch.stack([prompt.input_ids[-1] for prompt in prompts])
        self.prompt_ids = torch.where(segments == PADDING, last[:, None], ids).to(device)
        tensors = cast_tensors(stack_image_tensors(prompts), self.vlm.dtype)
        logits = self._forward(
            ids.to(device),
            positions.to(device),
            causal_segments(self.key_segments),
            {name: value.to(device) for name, value in tensors.items()},
        )
        return logits.expand(-1, self.slots.shape[1], -1)

    def advance(self, step: int) -> Tensor:
        """Feed the last token of every unfinished completion; logits (R, W, V) of the next."""
        queries = torch.where(self.live, self.slots + 1, FILLER)
        self.key_segments = torch.cat([self.key_segments, queries], dim=1)
        positions = (self.next_position[self.rows] + step)[:, None].expand_as(self.slots)
        return self._forward(
            self.tokens,
            positions.expand(self.axes, -1, -1),
            visible_segments(queries, self.key_segments),
            {},
        )

    def _forward(
        self, ids: Tensor, positions: Tensor, visible: Tensor, tensors: dict[str, Tensor]
    ) -> Tensor:
        hidden = self.model.model(
            input_ids=ids,
            position_ids=squeeze_positions(positions),
            attention_mask=additive_mask(visible, self.vlm.dtype),
            past_key_values=self.cache,
            use_cache=True,
            **tensors,
        ).last_hidden_state
        if tensors:
            hidden = hidden[:, -1:]
        logits: Tensor = self.model.lm_head(hidden).float()
        return logits

    def token_ids(self, step: int) -> Tensor:
        """(R * W, P + step) the tokens of prompt and completion so far, for every slot.

        Shorter rows are filled with their prompt's last token, which their text contains anyway.
        """
        prompt = self.prompt_ids[self.rows]
        drawn = self.output[self.rows[:, None], self.slots, :step]
        drawn = torch.where(drawn < 0, prompt[:, -1, None, None], drawn)
        prompt = prompt[:, None].expand(-1, self.slots.shape[1], -1)
        return torch.cat([prompt, drawn], dim=-1).flatten(0, 1)

    def without_banned(self, logits: Tensor) -> Tensor:
        return logits.index_fill(-1, self.banned, -torch.inf)

    def record(self, tokens: Tensor, logits: Tensor, step: int) -> None:
        """Write the chosen tokens (R, W) and their log-probabilities at T = 1."""
        logps = logits.gather(-1, tokens[..., None]).squeeze(-1) - logits.logsumexp(-1)
        rows = self.rows[:, None].expand_as(self.slots)[self.live]
        slots = self.slots[self.live]
        self.output[rows, slots, step] = tokens[self.live]
        self.logprobs[rows, slots] += logps[self.live].double()
        self.tokens = tokens

    def retire_finished(self) -> bool:
        """Drop finished slots, and rows without a live slot; false if nothing is left."""
        self.live = self.live & ~torch.isin(self.tokens, self.eos)
        running = self.live.sum(1)
        width = int(running.max())
        if width == 0:
            return False
        # Copying the cache costs about one step: wait until half of the rows are done.
        done = running == 0
        if int(done.sum()) * 2 >= len(done):
            self._keep_rows((~done).nonzero().squeeze(1))
        if width < self.slots.shape[1]:
            order = self.live.int().argsort(dim=1, descending=True, stable=True)[:, :width]
            self.slots, self.live = self.slots.gather(1, order), self.live.gather(1, order)
            self.tokens = self.tokens.gather(1, order)
        return True

    def _keep_rows(self, kept: Tensor) -> None:
        self.cache.batch_select_indices(kept)
        self.rows, self.slots = self.rows[kept], self.slots[kept]
        self.live, self.tokens = self.live[kept], self.tokens[kept]
        self.key_segments = self.key_segments[kept]

    def completions(self) -> list[list[Completion]]:
        num = self.output.shape[1]
        ids = [[t for t in y if t >= 0] for y in self.output.flatten(0, 1).tolist()]
        flat = _completions(self.vlm, ids, self.logprobs.flatten().tolist())
        return [flat[start : start + num] for start in range(0, len(flat), num)]
