"""Which token sees which when several completions share one prefix.

Two descriptions of the same rule. Training packs whole lists: every token has `Spans`, the keys
that it sees, from which a dense mask or FlexAttention's block mask is computed. Decoding grows a
cache in which the tokens of one completion are not adjacent: every position has a segment number,
0 = prefix, 1..N = completion, negative = padding, and an index in its own sequence (prefix and
completion). Windows and chunks (vlm/layers.py) narrow both.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from perpo_pipeline.vlm.layers import LayerKinds, Reach, by_layer_type, layer_kinds

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
# What transformers passes to an attention function that changes the scores; its SDPA ignores them.
CHANGES_OF_SCORES = ("softcap", "s_aux")


@dataclass(frozen=True)
class Spans:
    """The keys that each query of packed rows sees; every tensor is (R, T), indices into the row.

    Query q sees the keys [prefix_start, prefix_end) and [own_start, q]. A prefix token has an empty
    prefix span, and its `own_start` is the start of its prefix. A padding token sees only itself,
    so that no softmax has an empty set of keys. `image_end`, for families whose images attend both
    ways: for a token of an image the place after that image, else 0.
    """

    prefix_start: Tensor
    prefix_end: Tensor
    own_start: Tensor
    image_end: Tensor | None = None

    def within(self, reach: Reach) -> "Spans":
        """The keys that layers with this reach see.

        A token's index in the family's own sequence is its place after its answer's first one, plus
        the prefix before that; a window moves both starts up. A token of an image that looks ahead
        gets the rest of its image as its prefix span, which a prefix token has no other use for.
        """
        if reach.is_whole:
            return self
        places = torch.arange(self.own_start.shape[1], device=self.own_start.device)
        prefix = self.prefix_end - self.prefix_start
        first = reach.first_seen(places - self.own_start + prefix)
        start = torch.minimum(self.prefix_start + first, self.prefix_end)
        end, own = self.prefix_end, self.own_start + (first - prefix).clamp(min=0)
        if reach.ahead and self.image_end is not None:
            ahead = self.image_end > places + 1
            start = torch.where(ahead, places + 1, start)
            end = torch.where(ahead, self.image_end, end)
        return replace(self, prefix_start=start, prefix_end=end, own_start=own)

    def visible(self, first: int = 0) -> Tensor:
        """(R, T - first, T) bool: whether query (axis 1, starting at `first`) sees key (axis 2)."""
        keys = torch.arange(self.own_start.shape[1], device=self.own_start.device)
        start, end, own = (
            t[:, first:, None] for t in (self.prefix_start, self.prefix_end, self.own_start)
        )
        return ((keys >= start) & (keys < end)) | ((keys >= own) & (keys <= keys[first:, None]))

    def num_causal(self) -> int:
        """How many leading tokens are plain causal in every row: the shortest first prefix, or
        what of it no window cuts and no image looks beyond."""
        causal = (self.own_start == 0) & (self.prefix_end <= self.prefix_start)
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
    attend: Callable[..., tuple[Tensor, None]] = sdpa_attention_forward
    if any(kwargs.get(name) is not None for name in CHANGES_OF_SCORES):
        attend = attention_by_formula
    causal = 0 if attention_mask is None else query.shape[2] - attention_mask.shape[2]
    if causal <= 0:
        return attend(module, query, key, value, attention_mask, **kwargs)
    first, _ = attend(
        module, query[:, :, :causal], key[:, :, :causal], value[:, :, :causal], None, **kwargs
    )
    last, _ = attend(module, query[:, :, causal:], key, value, attention_mask, **kwargs)
    return torch.cat([first, last], dim=1), None


def attention_by_formula(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention with a softcap of the scores (Gemma 2, arXiv:2408.00118) or sinks (gpt-oss), which
    SDPA cannot compute: cap * tanh(scores / cap), and a score `s_aux` (H,) per head that takes
    weight and has no value. (B, H, T, D) -> (B, T, H, D).
    """
    heads, length = query.shape[1], query.shape[2]
    key, value = (t.repeat_interleave(heads // t.shape[1], dim=1) for t in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is None and length > 1:
        attention_mask = torch.ones_like(scores[0, 0], dtype=torch.bool).tril()
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    if s_aux is not None:
        sinks = s_aux.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks.to(scores.dtype)], dim=-1)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    if s_aux is not None:
        weights = weights[..., :-1]
    return (weights @ value).transpose(1, 2).contiguous(), None


def use_shared_prefix_attention(model: Any, *, flex: bool) -> None:
    """Make the text model of a transformers VLM take our masks; the vision tower keeps SDPA.

    The function has names of its own, since some families refuse the name `flex_attention`.
    """
    model.set_attn_implementation({"text_config": _registered(FLEX if flex else SPLIT)})


def attention_to_load(config: Any) -> Any:
    """transformers' `attn_implementation` for loading a VLM: SDPA, or our function for the text
    layers where SDPA would leave out a softcap or sinks.

    It replaces all that config.json says: None lets transformers choose for another part.
    """
    if not layer_kinds(config).changed_scores:
        return "sdpa"
    parts: dict[str, str | None] = dict.fromkeys(config.sub_configs)
    return parts | {"": "sdpa", "text_config": _registered(SPLIT)}


def _registered(name: str) -> str:
    AttentionInterface.register(name, shared_prefix_attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


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
    """The masks of packed rows in the form that the model's attention takes: one where all layers
    see the same, else a dict by transformers' layer type."""
    if uses_flash_parts(model):  # a mask that transformers passes on, and nobody reads
        return torch.zeros(1, 1, 1, 1, device=spans.own_start.device)
    return by_layer_type(
        layer_kinds(model.config), lambda reach: _mask_of_spans(model, spans.within(reach))
    )


def _mask_of_spans(model: Any, spans: Spans) -> Any:
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


@dataclass(frozen=True)
class Segments:
    """The positions of a growing cache, or the newest of them.

    `owners` (B, L) segment numbers; `index` (B, L) places in the sequence of prefix and completion;
    `image_end` (B, L) as in `Spans`, by index, for positions of a prompt.
    """

    owners: Tensor
    index: Tensor
    image_end: Tensor | None = None


def segment_masks(
    kinds: LayerKinds, queries: Segments, keys: Segments, visible: Tensor, dtype: torch.dtype
) -> Any:
    """Additive masks (B, 1, Q, K) by layer type, as in `packed_mask`, from what would be visible
    (B, Q, K) without windows."""
    index = keys.index[:, None, :]

    def mask_of(reach: Reach) -> Tensor:
        if reach.is_whole:
            return additive_mask(visible, dtype)
        seen = visible & (index >= reach.first_seen(queries.index)[:, :, None])
        if reach.ahead and queries.image_end is not None:
            later = index > queries.index[:, :, None]
            seen = seen | (later & (index < queries.image_end[:, :, None]))
        return additive_mask(seen, dtype)

    return by_layer_type(kinds, mask_of)


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
