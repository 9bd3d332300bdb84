"""Which token sees which when several completions share one prefix.

Two descriptions of the same rule. Training packs whole lists: every token has `Spans`, the keys
that it sees, from which a dense mask or FlexAttention's block mask is computed. Decoding grows a
cache in which the tokens of one completion are not adjacent: every position has a segment number,
0 = prefix, 1..N = completion, negative = padding.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

PREFIX = 0
PADDING = -1
BLOCK_TOKENS = 128  # FlexAttention's block of queries and of keys
# Rows are whole blocks (`block_mask`), so the kernels need not check their ends. The option
# ROWS_GUARANTEED_SAFE would give NaN, although each token sees itself: a row also has to see a key
# of the first block that the kernel reads for it.
KERNEL_OPTIONS = {"IS_DIVISIBLE": True}
# Names of our attention functions in transformers: with block masks; with masks for the last rows;
# the lever flash-parts (train/levers/flash_parts.py).
FLEX, SPLIT, PARTS = "perpo_flex", "perpo_split", "perpo_parts"


@dataclass(frozen=True)
class Spans:
    """The keys that each query of packed rows sees; every tensor is (R, T), indices into the row.

    Query q sees the keys [prefix_start, prefix_end) and [own_start, q]. A prefix token has an empty
    prefix span, and its `own_start` is the start of its prefix. A padding token sees only itself,
    so that no softmax has an empty set of keys.
    """

    prefix_start: Tensor
    prefix_end: Tensor
    own_start: Tensor

    def visible(self, first: int = 0) -> Tensor:
        """(R, T - first, T) bool: whether query (axis 1, starting at `first`) sees key (axis 2)."""
        keys = torch.arange(self.own_start.shape[1], device=self.own_start.device)
        start, end, own = (
            t[:, first:, None] for t in (self.prefix_start, self.prefix_end, self.own_start)
        )
        return ((keys >= start) & (keys < end)) | ((keys >= own) & (keys <= keys[first:, None]))

    def num_causal(self) -> int:
        """How many leading tokens are plain causal in every row: the shortest first prefix."""
        causal = self.own_start == 0
        return int(causal.long().cumprod(1).sum(1).min())


def block_mask(spans: Spans) -> BlockMask:
    """FlexAttention's mask of packed rows; T must be a multiple of BLOCK_TOKENS.

    The spans decide which blocks are empty, partial or full, with T x T/128 values: the library's
    `create_block_mask` would build dense T x T masks.
    """
    prefix_start, prefix_end, own_start = (
        t.to(torch.int32) for t in (spans.prefix_start, spans.prefix_end, spans.own_start)
    )
    num_rows, length = own_start.shape
    if length % BLOCK_TOKENS:
        raise ValueError(f"rows have {length} tokens, which is not a multiple of {BLOCK_TOKENS}")
    queries = torch.arange(length, device=own_start.device)
    first = torch.arange(0, length, BLOCK_TOKENS, device=own_start.device)  # (T/128,) first keys
    last = first + BLOCK_TOKENS - 1

    def touches(start: Tensor, end: Tensor) -> Tensor:  # [start, end) overlaps the block of keys
        return (start[..., None] <= last) & (end[..., None] > first)

    def covers(start: Tensor, end: Tensor) -> Tensor:
        return (start[..., None] <= first) & (end[..., None] > last)

    after = (queries + 1).expand(num_rows, -1)
    has_prefix = (prefix_end > prefix_start)[..., None]
    some = (touches(prefix_start, prefix_end) & has_prefix) | touches(own_start, after)
    whole = (covers(prefix_start, prefix_end) & has_prefix) | covers(own_start, after)
    by_block = (num_rows, 1, length // BLOCK_TOKENS, BLOCK_TOKENS, -1)
    some, whole = some.view(by_block).any(3), whole.view(by_block).all(3)

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        in_prefix = (key >= prefix_start[row, query]) & (key < prefix_end[row, query])
        return in_prefix | ((key >= own_start[row, query]) & (key <= query))

    partial_blocks, full_blocks = _ordered(some & ~whole), _ordered(whole)
    return BlockMask.from_kv_blocks(
        *partial_blocks, *full_blocks, BLOCK_SIZE=BLOCK_TOKENS, mask_mod=sees
    )


def shared_prefix_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention: Flex if the mask is a `BlockMask`, else SDPA (None = causal).

    An additive mask with fewer rows than queries is for the last queries; the earlier ones are
    plain causal, so that the prefix takes half the work and never sees the answers.
    """
    if isinstance(attention_mask, BlockMask):
        output: tuple[Tensor, Tensor | None] = flex_attention_forward(
            module, query, key, value, attention_mask, kernel_options=KERNEL_OPTIONS, **kwargs
        )
        return output
    causal = 0 if attention_mask is None else query.shape[2] - attention_mask.shape[2]
    if causal <= 0:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    first, _ = sdpa_attention_forward(
        module, query[:, :, :causal], key[:, :, :causal], value[:, :, :causal], None, **kwargs
    )
    last, _ = sdpa_attention_forward(
        module, query[:, :, causal:], key, value, attention_mask, **kwargs
    )
    return torch.cat([first, last], dim=1), None


def use_shared_prefix_attention(model: Any, *, flex: bool) -> None:
    """Make the text model of a transformers VLM take our masks; the vision tower keeps SDPA.

    The function has names of its own, since some families refuse the name `flex_attention`.
    """
    name = FLEX if flex else SPLIT
    AttentionInterface.register(name, shared_prefix_attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    model.set_attn_implementation({"text_config": name})


def uses_flex_attention(model: Any) -> bool:
    """Whether the text model of this transformers model takes block masks."""
    return _implementation(model) == FLEX


def uses_flash_parts(model: Any) -> bool:
    """Whether the text model of this transformers model takes parts instead of a mask."""
    return _implementation(model) == PARTS


def packs_in_one_row(model: Any) -> bool:
    """Whether lists stand one after another in a row: not where a mask is dense."""
    on_cuda = model.get_input_embeddings().weight.is_cuda
    return uses_flex_attention(model) or (uses_flash_parts(model) and on_cuda)


def packed_mask(model: Any, spans: Spans) -> Any:
    """The mask of packed rows in the form that the model's attention takes."""
    if uses_flash_parts(model):  # a mask that transformers passes on, and nobody reads
        return torch.zeros(1, 1, 1, 1, device=spans.own_start.device)
    if uses_flex_attention(model):
        return block_mask(spans)
    first = spans.num_causal() if _implementation(model) == SPLIT else 0
    # At least one row: the attention function would take a mask without rows for plain causal.
    first = min(first, spans.own_start.shape[1] - 1)
    return additive_mask(spans.visible(first), model.dtype)


def _implementation(model: Any) -> str:
    return str(model.config.get_text_config()._attn_implementation)


def visible_segments(query_segments: Tensor, key_segments: Tensor) -> Tensor:
    """(B, Q) and (B, K) -> (B, Q, K) bool: the key is in the prefix or in the query's segment."""
    keys = key_segments[:, None, :]
    return (keys == PREFIX) | (keys == query_segments[:, :, None])


def causal_segments(segments: Tensor) -> Tensor:
    """(B, T) -> (B, T, T) bool for whole sequences: visible segments, never a later token.

    Every token sees at least itself, also padding, so that no softmax has an empty set of keys.
    """
    ahead = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool).tril()
    return visible_segments(segments, segments) & ahead.to(segments.device)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, Q, K) bool -> (B, 1, Q, K) float, to be added to the scores.

    Not bool: transformers' eager attention adds the mask, and would silently add 0 and 1.
    """
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(R, 1, Q, K) bool -> each query block's number of key blocks, and key blocks, those first."""
    counts = blocks.sum(-1, dtype=torch.int32)
    order = blocks.int().argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return counts, order.contiguous()
