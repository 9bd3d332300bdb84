"""Draw tokens from softmax(logits / T), with the uniform numbers of each prompt's own seed."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# (logits (R, W, V), prompt of each row (R,), completion of each slot (R, W), step) -> ids (R, W)
Chooser = Callable[[Tensor, Tensor, Tensor, int], Tensor]


# (token ids so far (K, L), logits (K, V)) -> logits to draw from, temperature included
Warper = Callable[[Tensor, Tensor], Tensor]


def uniforms_of(seeds: Sequence[int], max_new_tokens: int, num_samples: int) -> Tensor:
    """(B, max_new_tokens, N) uniform random numbers, each prompt's from its own seed."""
    shape = (max_new_tokens, num_samples)
    return torch.stack(
        [
            torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for seed in seeds
        ]
    )


def drawer(uniforms: Tensor, temperature: float) -> Chooser:
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


def warper(
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
