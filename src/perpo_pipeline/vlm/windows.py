"""Attention of Qwen's vision towers: windows of equal length share one call.

These towers read the patches of all images as one sequence, of which each image, or each window of
64 patches, is a part that sees only itself. Under SDPA transformers copies the parts' lengths to
the processor three times in each layer and calls the kernel once for each part, which are thousands
of small calls for a photo. Where the attention's name says flash, it makes one call per layer and
passes the boundaries on; the function here has such a name, groups the parts by their length, and
reads the boundaries once in a forward.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

WINDOWS = "perpo_windows_as_flash"  # our function's name in transformers
# transformers' model types whose vision tower calls attention as described above.
TOWERS_WITH_PARTS = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"})


@dataclass(frozen=True)
class _Parts:
    """The parts of a sequence, sorted by length: `shapes` has (number of parts, their length).

    `order` (T,) puts the sequence into that order and `back` (T,) undoes it; None if nothing moves.
    """

    shapes: list[tuple[int, int]]
    order: Tensor | None
    back: Tensor | None


_known: Any = WeakTensorKeyDictionary()  # the boundaries of a forward -> their parts


def use_window_attention(model: Any) -> None:
    """Let equal windows share a call in a transformers VLM that is loaded with SDPA.

    Other vision towers are not changed.
    """
    if model.config.model_type in TOWERS_WITH_PARTS:
        AttentionInterface.register(WINDOWS, window_attention)
        model.set_attn_implementation({"vision_config": WINDOWS})


def window_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention within the parts that the boundaries `cu_seq_lens_q` (n + 1,) give.

    `query`, `key`, `value` (1, H, T, D) -> (1, T, H, D). Without boundaries it is SDPA.
    """
    if cu_seq_lens_q is None:
        whole: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **kwargs
        )
        return whole
    parts = _parts_of(cu_seq_lens_q)
    tokens = [_ordered(tensor.transpose(1, 2), parts.order) for tensor in (query, key, value)]
    outputs, start = [], 0
    for number, length in parts.shapes:
        end = start + number * length
        q, k, v = (
            t[0, start:end].reshape(number, length, *t.shape[2:]).transpose(1, 2) for t in tokens
        )
        found, _ = sdpa_attention_forward(module, q, k, v, None, **kwargs)
        outputs.append(found.flatten(0, 1)[None])
        start = end
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    return _ordered(joined, parts.back), None


def _parts_of(boundaries: Tensor) -> _Parts:
    """Computed once for each tensor of boundaries, which the layers of a forward share."""
    if boundaries not in _known:
        _known[boundaries] = _sorted_parts(boundaries.diff().tolist(), boundaries.device)
    parts: _Parts = _known[boundaries]
    return parts


def _sorted_parts(lengths: list[int], device: torch.device) -> _Parts:
    counts = {length: lengths.count(length) for length in sorted(set(lengths)) if length}
    shapes = [(number, length) for length, number in counts.items()]
    if len(shapes) == 1:
        return _Parts(shapes, None, None)
    of_token = torch.tensor(lengths).repeat_interleave(torch.tensor(lengths))
    order = of_token.argsort(stable=True)
    return _Parts(shapes, order.to(device), order.argsort().to(device))


def _ordered(tokens: Tensor, order: Tensor | None) -> Tensor:
    """(1, T, H, D) with its tokens in another order."""
    return tokens if order is None else tokens.index_select(1, order)
