"""Log-probabilities of whole lists in one forward: the prefix is read once for all completions.

A list is packed as `[prefix | y_1 | ... | y_n]`. Every y_i sees the prefix and itself, positions
restart after the prefix, and the last prefix token predicts the first token of every y_i. A list
of N answers of A tokens after a prefix of P tokens costs P + N*A tokens instead of N*(P + A), and
the image is encoded once. This is exact: log-probabilities and gradients equal those of separate
forwards, to rounding. Layers with windows or chunks get masks of their own (vlm/layers.py).

With FlexAttention (CUDA) many lists share a row, padded at its end to whole blocks of the kernel,
or to one of few lengths if it is compiled for each; elsewhere each list has its own row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perpo_pipeline.errors import InputError
from perpo_pipeline.train.layout import PackedList
from perpo_pipeline.train.levers.last_layer import predicting_places, uses_last_layer
from perpo_pipeline.train.levers.whole_head import fitting_rows
from perpo_pipeline.train.recurrent_steps import packed_steps
from perpo_pipeline.train.sharded_weights import is_sharded
from perpo_pipeline.vlm.attention import (
    BLOCK_TOKENS,
    Spans,
    packed_mask,
    packs_in_one_row,
    uses_flash_parts,
)
from perpo_pipeline.vlm.heads import change_of_logits
from perpo_pipeline.vlm.layers import LayerKinds, ends_of_blocks
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm, base_model
from perpo_pipeline.vlm.recurrent import (
    masks_by_layer_type,
    takes_left_padding,
    uses_recurrent_steps,
)
from perpo_pipeline.vlm.tensors import cast_tensors, move, squeeze_positions, stack_image_tensors

# Logits computed at a time: 2^26 fp32 values = 256 MiB (2,097 positions with a vocabulary of
# 32,000); a few copies exist at once.
LOGIT_BUDGET = 2**26
RowLengths = Literal["any", "bucketed"]
LENGTHS_PER_OCTAVE = 8  # bucketed lengths between T and 2T: at most 1/8 of a row is padding


@dataclass(frozen=True)
class CompletionList:
    """A prompt with its distinct completions, as sampled (end token included where it stopped)."""

    prompt: EncodedPrompt
    completions: Sequence[Sequence[int]]

    @property
    def num_packed_tokens(self) -> int:
        """Tokens of the packed list, without each completion's last one, which predicts nothing."""
        return self.prompt.num_tokens + sum(len(y) - 1 for y in self.completions)


@dataclass(frozen=True)
class PackedBatch:
    """B packed lists in R rows of T tokens; N is the longest list's length.

    `input_ids` (R, T); `spans` the keys that each token sees; `positions` (A, R, T) with A = 1 or 3
    axes; `tensors` the pixel tensors. For the K completion tokens of all lists: `predictors` (K,)
    index into the R*T places, `targets` (K,) the token predicted there, `places` (K,) index into
    B*N*L (L = `max_tokens`, the longest completion). `num_tokens` (B, N) tokens of each completion,
    0 at padding; `num_packed` tokens of all rows without padding; `layout` the lists' places.
    """

    input_ids: Tensor
    spans: Spans
    positions: Tensor
    tensors: dict[str, Tensor]
    predictors: Tensor
    targets: Tensor
    places: Tensor
    num_tokens: Tensor
    max_tokens: int
    num_packed: int
    layout: tuple[PackedList, ...]

    @property
    def mask(self) -> Tensor:
        """(B, N) true where there is a completion."""
        return self.num_tokens > 0

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedBatch":
        """The batch on `device`; accelerate calls this signature."""
        return move(self, device, non_blocking)


def pack_lists(
    vlm: Vlm,
    lists: Sequence[CompletionList],
    *,
    one_row: bool | None = None,
    row_lengths: RowLengths = "any",
    min_tokens: int = 0,
) -> PackedBatch:
    """Pack lists on the CPU, each in its own row, or all in one row (default: if Flex is in use).

    One row is padded as if it had at least `min_tokens`.

    Raises InputError for an empty list or completion, and for a completion with an image
    placeholder, which the model would replace by image features.
    """
    check_lists(lists, vlm.image_token_ids)
    if one_row is None:
        one_row = packs_in_one_row(base_model(vlm.model))
    starts = _starts(lists, one_row)
    layers = vlm.layers
    packed = [_pack(entry, start, layers) for entry, (_, start) in zip(lists, starts, strict=True)]
    rows = [packed] if one_row else [[one] for one in packed]
    joined = [_join(row) for row in rows]
    length = max(row.input_ids.shape[0] for row in joined)
    if one_row:
        length = row_length(max(length, min_tokens), row_lengths)
    num = max(len(entry.completions) for entry in lists)
    num_tokens = torch.zeros(len(lists), num, dtype=torch.long)
    for b, entry in enumerate(lists):
        num_tokens[b, : len(entry.completions)] = torch.tensor([len(y) for y in entry.completions])
    max_tokens = int(num_tokens.max())
    first_places = [row * length + start for row, start in starts]
    predictors, targets, places = _targets(lists, first_places, num, max_tokens)
    padded = [_pad(row, length, vlm.pad_token_id) for row in joined]
    return PackedBatch(
        input_ids=torch.stack([row.input_ids for row in padded]),
        spans=Spans(*(torch.stack(some) for some in zip(*(r.spans for r in padded), strict=True))),
        positions=torch.stack([row.positions for row in padded], dim=1),
        tensors=stack_image_tensors([entry.prompt for entry in lists]),
        predictors=predictors,
        targets=targets,
        places=places,
        num_tokens=num_tokens,
        max_tokens=max_tokens,
        num_packed=sum(entry.num_packed_tokens for entry in lists),
        layout=tuple(
            PackedList(place, e.prompt.num_tokens, tuple(len(y) - 1 for y in e.completions))
            for place, e in zip(first_places, lists, strict=True)
        ),
    )


def row_length(num_tokens: int, row_lengths: RowLengths = "any") -> int:
    """The length that a row of `num_tokens` is padded to, a multiple of Flex's blocks.

    `bucketed`: one of LENGTHS_PER_OCTAVE values between T and 2T, so that layers that are compiled
    for one length are used again.
    """
    step = BLOCK_TOKENS
    if row_lengths == "bucketed":
        step = max(step, (1 << num_tokens.bit_length() - 1) // LENGTHS_PER_OCTAVE)
    return -(-num_tokens // step) * step


def packed_logps(model: nn.Module, batch: PackedBatch) -> Tensor:
    """Summed log-probabilities (B, N) in nats, fp32; 0 at padding."""
    inner = base_model(model)
    batch = batch.to(inner.get_input_embeddings().weight.device)
    inputs = _layer_inputs(inner, batch)
    hidden = inner.model(
        input_ids=batch.input_ids,
        **inputs,
        position_ids=squeeze_positions(batch.positions),
        use_cache=False,
        **cast_tensors(batch.tensors, inner.dtype),
    ).last_hidden_state
    if (predicting := inputs.get("predicting")) is None:
        predictors = batch.predictors
    else:
        predictors = torch.searchsorted(predicting, batch.predictors)
    logps = token_logps(inner, hidden.flatten(0, 1)[predictors], batch.targets)
    # Each token has its own place, so the sum is deterministic on every device.
    table = logps.new_zeros(batch.num_tokens.numel() * batch.max_tokens)
    table = table.index_put((batch.places,), logps)
    return table.view(*batch.num_tokens.shape, batch.max_tokens).sum(-1)


def _layer_inputs(inner: Any, batch: PackedBatch) -> dict[str, Any]:
    """Which token sees which, in the form that the model's attention takes, and what levers need
    (train/levers)."""
    device = batch.input_ids.device
    inputs: dict[str, Any] = {"attention_mask": packed_mask(inner, batch.spans)}
    if uses_recurrent_steps(inner):
        padded, places = takes_left_padding(inner), batch.input_ids.numel()
        steps = packed_steps(batch.layout, places, device, left_padding=padded)
        inputs["attention_mask"] = masks_by_layer_type(inputs["attention_mask"], steps)
    if uses_flash_parts(inner):
        from perpo_pipeline.train.levers.flash_parts import list_parts

        inputs["packed_parts"] = list_parts(batch.layout, batch.input_ids.numel(), device)
    if uses_last_layer(inner):
        inputs["predicting"] = predicting_places(batch.layout, device)
    return inputs


def token_logps(model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """log p(target) at each position, fp32. `hidden` (K, D), `targets` (K,) -> (K,).

    `model` is the transformers model: its head and what the family does after it are applied.
    Logits are computed in chunks of at most LOGIT_BUDGET values, or, with the lever whole-head, of
    what fits into the free memory; with more than one chunk the backward pass computes them again
    instead of keeping them.
    """
    lm_head = model.lm_head
    rows = max(1, LOGIT_BUDGET // lm_head.out_features, fitting_rows(lm_head, hidden))
    num_chunks = _max_over_processes(lm_head, -(-hidden.shape[0] // rows))
    if num_chunks <= 1:
        return _chunk_logps(model, hidden, targets)
    chunks = zip(hidden.tensor_split(num_chunks), targets.tensor_split(num_chunks), strict=True)
    return torch.cat(
        [checkpoint(_chunk_logps, model, h, t, use_reentrant=False) for h, t in chunks]
    )


def _max_over_processes(lm_head: nn.Linear, num_chunks: int) -> int:
    """The most chunks of any process: under ZeRO-3 all take part in each call of the head."""
    if not is_sharded(lm_head):
        return num_chunks
    import torch.distributed as dist

    largest = torch.tensor(num_chunks, device=lm_head.weight.device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def check_lists(lists: Sequence[CompletionList], image_token_ids: Sequence[int]) -> None:
    """Raise InputError for lists that no forward can handle."""
    if not lists:
        raise InputError("No lists were given.")
    for b, entry in enumerate(lists):
        if not entry.completions:
            raise InputError("A list has no completions.", where=f"list {b} of the batch")
        for n, completion in enumerate(entry.completions):
            where = f"list {b} of the batch, completion {n}"
            if not len(completion):
                raise InputError("A completion has no tokens.", where=where)
            if placeholders := set(completion) & set(image_token_ids):
                raise InputError(
                    f"A completion contains the image placeholder token {min(placeholders)}.",
                    where=where,
                    fix="sample with this package, which bans the placeholder, or drop the answer",
                )


@dataclass(frozen=True)
class _Row:
    """A row, or one list's part of it: (t,) ids, (A, t) positions, (t,) each of `Spans`."""

    input_ids: Tensor
    positions: Tensor
    spans: tuple[Tensor, ...]


def _starts(lists: Sequence[CompletionList], one_row: bool) -> list[tuple[int, int]]:
    """The row of each list, and the place in it where the list begins."""
    if not one_row:
        return [(b, 0) for b in range(len(lists))]
    ends = torch.tensor([entry.num_packed_tokens for entry in lists]).cumsum(0).tolist()
    return [(0, start) for start in [0, *ends[:-1]]]


def _pack(entry: CompletionList, start: int, layers: LayerKinds) -> _Row:
    """One list, beginning at place `start` of its row."""
    prompt = entry.prompt
    answers = [torch.as_tensor(y[:-1], dtype=torch.long) for y in entry.completions]
    lengths = torch.tensor([len(y) for y in answers])
    end = start + prompt.num_tokens  # of the prefix
    first = (end + lengths.cumsum(0) - lengths).repeat_interleave(lengths)  # of each token's answer
    steps = torch.arange(end, end + len(first)) - first + prompt.next_position
    zeros = torch.zeros(prompt.num_tokens, dtype=torch.long)
    images: tuple[Tensor, ...] = ()
    if layers.ahead and prompt.token_types is not None:
        ends = ends_of_blocks(prompt.token_types, layers.block_types)
        images = (torch.cat([torch.where(ends > 0, ends + start, 0), torch.zeros_like(first)]),)
    return _Row(
        input_ids=torch.cat([prompt.input_ids, *answers]),
        positions=torch.cat([prompt.positions, steps.expand(prompt.positions.shape[0], -1)], dim=1),
        spans=(
            torch.cat([zeros, torch.full_like(first, start)]),
            torch.cat([zeros, torch.full_like(first, end)]),
            torch.cat([zeros + start, first]),
            *images,
        ),
    )


def _join(parts: Sequence[_Row]) -> _Row:
    return _Row(
        input_ids=torch.cat([part.input_ids for part in parts]),
        positions=torch.cat([part.positions for part in parts], dim=1),
        spans=tuple(torch.cat(some) for some in zip(*(p.spans for p in parts), strict=True)),
    )


def _pad(row: _Row, length: int, pad_token_id: int) -> _Row:
    """Fill up to `length` with tokens that see only themselves."""
    used = row.input_ids.shape[0]
    end = (0, length - used)
    prefix_start, prefix_end, own_start, *images = row.spans
    return _Row(
        input_ids=F.pad(row.input_ids, end, value=pad_token_id),
        positions=F.pad(row.positions, end),
        spans=(
            F.pad(prefix_start, end),
            F.pad(prefix_end, end),
            torch.cat([own_start, torch.arange(used, length)]),
            *(F.pad(ends, end) for ends in images),
        ),
    )


def _targets(
    lists: Sequence[CompletionList], first_places: Sequence[int], num: int, max_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`predictors`, `targets` and `places` (K,), as in `PackedBatch`."""
    predictors: list[int] = []
    targets: list[int] = []
    places: list[int] = []
    for b, (entry, first_place) in enumerate(zip(lists, first_places, strict=True)):
        last_of_prefix = first_place + entry.prompt.num_tokens - 1
        start = last_of_prefix + 1
        for n, completion in enumerate(entry.completions):
            count = len(completion)
            inside = count - 1  # the last token is predicted, but predicts nothing
            predictors += [last_of_prefix, *range(start, start + inside)]
            targets += completion
            first = (b * num + n) * max_tokens
            places += range(first, first + count)
            start += inside
    return torch.tensor(predictors), torch.tensor(targets), torch.tensor(places)


def _chunk_logps(model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = change_of_logits(model.config)(model.lm_head(hidden))
    return -F.cross_entropy(logits.float(), targets, reduction="none")
