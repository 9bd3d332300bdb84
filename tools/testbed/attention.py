"""Attention of the testbed's training, in plain matrix products: several times as fast on a CPU.

PyTorch's fused kernel spends two thirds of a training step in its backward pass there.
"""

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "testbed_training"


def register_attention() -> str:
    """Register `attend` under a name for `attn_implementation`; returns the name."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    return NAME


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packing: tuple[int, int] | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Packed attention for rows of (prefix, slot) lengths; without `packing` all see all."""
    if packing is None:
        output = full_attention(query, key, value)
    else:
        output = packed_attention(query, key, value, *packing)
    return output.transpose(1, 2).contiguous(), None


def full_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over (B, H, L, D) in which every place sees every other."""
    scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    return torch.as_tensor(scores.softmax(-1).to(query.dtype) @ value)


def packed_attention(query: Tensor, key: Tensor, value: Tensor, prefix: int, slot: int) -> Tensor:
    """Attention over (B, H, prefix + K * slot, D) where each slot sees the prefix and itself.

    Equals a causal 4-D mask that hides the slots from each other, with a third of the work: scores
    of a slot are computed only against the prefix and the slot itself.
    """
    batch, heads, length, width = query.shape
    slots = (length - prefix) // slot
    scale = width**-0.5
    key_p, value_p = key[:, :, :prefix], value[:, :, :prefix]
    scores = (query[:, :, :prefix] @ key_p.transpose(-1, -2)).float() * scale
    weights = (scores + _causal(prefix, query.device)).softmax(-1).to(query.dtype)
    out_prefix = weights @ value_p
    rest = query[:, :, prefix:]
    shape = (batch, heads, slots, slot, width)
    own_q, own_k, own_v = (x[:, :, prefix:].reshape(shape) for x in (query, key, value))
    to_prefix = (rest @ key_p.transpose(-1, -2)).float() * scale
    to_own = (own_q @ own_k.transpose(-1, -2)).float() * scale + _causal(slot, query.device)
    to_own = to_own.reshape(batch, heads, slots * slot, slot)
    weights = torch.cat([to_prefix, to_own], -1).softmax(-1).to(query.dtype)
    own = weights[..., prefix:].reshape(batch, heads, slots, slot, slot) @ own_v
    out_slots = weights[..., :prefix] @ value_p + own.reshape(rest.shape)
    return torch.cat([out_prefix, out_slots], 2)


def _causal(length: int, device: torch.device) -> Tensor:
    return torch.full((length, length), -1e9, device=device).triu(1)
