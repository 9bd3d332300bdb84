"""Which token sees which, when several completions share one prefix.

Every token carries a segment number: 0 = prefix, 1..N = completion, negative = padding. A query
sees the prefix and its own segment, nothing else; order inside a sequence is the caller's.
"""

import torch
from torch import Tensor

PREFIX = 0
PADDING = -1


def visible_segments(query_segments: Tensor, key_segments: Tensor) -> Tensor:
    """(B, Q) and (B, K) -> (B, Q, K) bool: the key is prefix, or of the query's own segment."""
    keys = key_segments[:, None, :]
    return (keys == PREFIX) | (keys == query_segments[:, :, None])


def causal_segments(segments: Tensor) -> Tensor:
    """(B, T) -> (B, T, T) bool for whole sequences: visible segments, and never ahead.

    Every token sees at least itself, padding included, so no softmax runs over nothing.
    """
    ahead = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool).tril()
    return visible_segments(segments, segments) & ahead.to(segments.device)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, Q, K) bool -> (B, 1, Q, K) float to add to the scores.

    Float on purpose: transformers' eager attention adds the mask, and a bool one would be added
    as 0 and 1 without a word.
    """
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
