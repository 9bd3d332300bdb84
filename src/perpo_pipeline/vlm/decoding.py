"""Draw lists of completions with transformers; each prompt and image is processed only once.

A row of the key-value cache holds the prompt once, followed by the tokens of all N completions.
Each step feeds one token per unfinished completion. A mask separates the completions, and positions
restart after the prompt: the layout of train/shared_prefix.py, grown token by token. Because the
prompt is not copied N times, a prompt takes memory for P + N*t tokens instead of N*(P + t).

Completions are drawn from softmax(logits / T) and nothing else: no top-k, no top-p, no penalty,
whatever the model's generation_config.json says. Only image placeholder tokens are banned. Each
prompt draws from its own seed, so batch size and order do not change its random numbers (float
rounding differs between batch shapes: about one token in a million may differ).

Models that cannot share a prefix, or are not proven to (vlm/ways.py), go through plain_decoding.py,
which does the same more slowly.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.vlm import plain_decoding as plain
from perpo_pipeline.vlm.attention import (
    PADDING,
    PREFIX,
    Segments,
    causal_segments,
    segment_masks,
    visible_segments,
)
from perpo_pipeline.vlm.cache import GrowingCache
from perpo_pipeline.vlm.choosing import Chooser, Warper, drawer, uniforms_of, warper
from perpo_pipeline.vlm.completion import Completion
from perpo_pipeline.vlm.heads import change_of_logits
from perpo_pipeline.vlm.layers import ends_of_blocks
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm, base_model
from perpo_pipeline.vlm.processors import decode_completions
from perpo_pipeline.vlm.recurrent import (
    Steps,
    masks_by_layer_type,
    takes_left_padding,
    uses_recurrent_steps,
)
from perpo_pipeline.vlm.recurrent_decoding import GrowingStates
from perpo_pipeline.vlm.tensors import cast_tensors, squeeze_positions, stack_image_tensors

FILLER = -2  # an unused query slot, in a row with fewer unfinished completions than others


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
    warp = warper(temperature, top_k, top_p, repetition_penalty)
    uniforms = uniforms_of(seeds, max_new_tokens, num_samples).to(vlm.device)
    draw = drawer(uniforms, temperature if warp is None else 1.0)
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


@torch.no_grad()
def force_lists(
    vlm: Vlm, prompts: Sequence[EncodedPrompt], answers: Sequence[Sequence[Sequence[int]]]
) -> Tensor:
    """(B, N) log-probabilities in nats of N given answers per prompt, in the packed cache.

    Each answer must end with an end token, and hold none before.
    """
    longest = max(len(answer) for some in answers for answer in some)
    given = torch.full((len(prompts), len(answers[0]), longest), vlm.eos_token_ids[0])
    for row, some in enumerate(answers):
        for slot, answer in enumerate(some):
            given[row, slot, : len(answer)] = torch.tensor(answer)
    given = given.to(vlm.device)

    def next_given(logits: Tensor, rows: Tensor, slots: Tensor, step: int) -> Tensor:
        return given[rows[:, None], slots, step]

    batch = _grow(vlm, prompts, len(answers[0]), longest, next_given)
    return batch.logprobs.cpu()


def _decode(
    vlm: Vlm,
    prompts: Sequence[EncodedPrompt],
    num_samples: int,
    max_new_tokens: int,
    choose: Chooser,
    warp: Warper | None = None,
) -> list[list[Completion]]:
    if not prompts:
        return []
    return _grow(vlm, prompts, num_samples, max_new_tokens, choose, warp).completions()


def _grow(
    vlm: Vlm,
    prompts: Sequence[EncodedPrompt],
    num_samples: int,
    max_new_tokens: int,
    choose: Chooser,
    warp: Warper | None = None,
) -> "_Batch":
    """Grow every completion token by token; finished ones leave the batch."""
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
    return batch


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
    is false for filler slots; `keys` (R, L) says whose each cache position is.
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
        self.prompt_tokens = torch.tensor([p.num_tokens for p in prompts], device=device)
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
        self.states = GrowingStates(num_samples) if uses_recurrent_steps(self.model) else None
        self.change = change_of_logits(self.model.config)

    def prefill(self, prompts: Sequence[EncodedPrompt]) -> Tensor:
        """Read the left-padded prompts and their images; logits (B, N, V) of the first token."""
        width = max(p.num_tokens for p in prompts)
        device = self.vlm.device
        ids = torch.full((len(prompts), width), self.vlm.pad_token_id)
        segments = torch.full((len(prompts), width), PADDING)
        positions = torch.zeros((self.axes, len(prompts), width), dtype=torch.long)
        index, image_end = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, -prompt.num_tokens :] = prompt.input_ids
            segments[row, -prompt.num_tokens :] = PREFIX
            positions[:, row, -prompt.num_tokens :] = prompt.positions
            index[row, -prompt.num_tokens :] = torch.arange(prompt.num_tokens)
            if self.vlm.layers.ahead and prompt.token_types is not None:
                ends = ends_of_blocks(prompt.token_types, self.vlm.layers.block_types)
                image_end[row, -prompt.num_tokens :] = ends
        self.keys = Segments(segments.to(device), index.to(device))
        last = torch.stack([prompt.input_ids[-1] for prompt in prompts])
        self.prompt_ids = torch.where(segments == PADDING, last[:, None], ids).to(device)
        tensors = cast_tensors(stack_image_tensors(prompts), self.vlm.dtype)
        logits = self._forward(
            ids.to(device),
            positions.to(device),
            replace(self.keys, image_end=image_end.to(device)),
            causal_segments(self.keys.owners),
            {name: value.to(device) for name, value in tensors.items()},
        )
        return logits.expand(-1, self.slots.shape[1], -1)

    def advance(self, step: int) -> Tensor:
        """Feed the last token of every unfinished completion; logits (R, W, V) of the next."""
        owners = torch.where(self.live, self.slots + 1, FILLER)
        index = (self.prompt_tokens[self.rows] + step)[:, None].expand_as(self.slots)
        self.keys = Segments(
            torch.cat([self.keys.owners, owners], dim=1), torch.cat([self.keys.index, index], dim=1)
        )
        positions = (self.next_position[self.rows] + step)[:, None].expand_as(self.slots)
        return self._forward(
            self.tokens,
            positions.expand(self.axes, -1, -1),
            Segments(owners, index),
            visible_segments(owners, self.keys.owners),
            {},
        )

    def _forward(
        self,
        ids: Tensor,
        positions: Tensor,
        queries: Segments,
        visible: Tensor,
        tensors: dict[str, Tensor],
    ) -> Tensor:
        mask = segment_masks(self.vlm.layers, queries, self.keys, visible, self.vlm.dtype)
        if self.states is not None:
            mask = masks_by_layer_type(mask, self._steps(self.states, is_prompt=bool(tensors)))
        hidden = self.model.model(
            input_ids=ids,
            position_ids=squeeze_positions(positions),
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            **tensors,
        ).last_hidden_state
        if tensors:
            hidden = hidden[:, -1:]
        return self.change(self.model.lm_head(hidden)).float()

    def _steps(self, states: GrowingStates, is_prompt: bool) -> Steps:
        """What layers with a recurrent state read: whole prompts, or a token of each completion."""
        if not is_prompt:
            return states.read_tokens(self.rows, self.slots)
        padded = takes_left_padding(self.model)
        return states.read_prefixes(self.keys.owners == PREFIX, left_padding=padded)

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
        self.keys = Segments(self.keys.owners[kept], self.keys.index[kept])

    def completions(self) -> list[list[Completion]]:
        num = self.output.shape[1]
        ids = [[t for t in y if t >= 0] for y in self.output.flatten(0, 1).tolist()]
        flat = _completions(self.vlm, ids, self.logprobs.flatten().tolist())
        return [flat[start : start + num] for start in range(0, len(flat), num)]
