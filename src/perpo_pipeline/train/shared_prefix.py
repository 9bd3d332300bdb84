"""Log-probabilities of whole lists in one forward: the prefix is read once for all completions.

A row is `[prefix | y_1 | ... | y_n | padding]`. Every y_i sees the prefix and itself, positions
restart after the prefix, and the last prefix token predicts the first token of every y_i. A list
of N answers of A tokens behind a prefix of P costs P + N*A tokens instead of N*(P + A); the image
is encoded once. Exact: the same log-probabilities and gradients as separate forwards, to rounding.
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perpo_pipeline.attention import PADDING, additive_mask, causal_segments
from perpo_pipeline.errors import InputError
from perpo_pipeline.models import EncodedPrompt, Vlm, base_model

# Logits held at a time: 2^25 fp32 values = 128 MiB (1,048 positions of a 32,000 vocabulary).
LOGIT_BUDGET = 2**25


@dataclass(frozen=True)
class CompletionList:
    """A prompt with its distinct completions, as sampled (end token included where it stopped)."""

    prompt: EncodedPrompt
    completions: Sequence[Sequence[int]]


@dataclass(frozen=True)
class ListBatch:
    """B packed lists; N is the longest list's length, K the completion tokens of all together.

    `input_ids`, `segments` (B, T); `positions` (A, B, T) with A = 1 or 3 axes; `tensors` the pixel
    tensors; `predictors` (K,) index into the B*T positions, `targets` (K,) the token predicted
    there, `places` (K,) index into B*N*L (L = the longest completion); `num_tokens` (B, N) tokens
    of each completion, 0 where a list is shorter; `mask` (B, N) true where there is a completion.
    """

    input_ids: Tensor
    segments: Tensor
    positions: Tensor
    tensors: dict[str, Tensor]
    predictors: Tensor
    targets: Tensor
    places: Tensor
    num_tokens: Tensor
    max_tokens: int

    @property
    def mask(self) -> Tensor:
        return self.num_tokens > 0

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "ListBatch":
        """The batch on `device`; this signature is the one accelerate calls."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking)
            for name in (f.name for f in fields(self))
            if isinstance(value := getattr(self, name), Tensor)
        }
        moved["tensors"] = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in self.tensors.items()
        }
        return replace(self, **moved)


class ListPolicy(nn.Module):
    """What a Trainer wraps: `forward(batch)` gives the lists' log-probabilities `(B, N)`.

    DDP, FSDP and ZeRO act at the wrapped module's forward, so all the work happens inside it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: ListBatch) -> Tensor:
        return completion_logps(self.model, batch)


def pack_lists(vlm: Vlm, lists: Sequence[CompletionList]) -> ListBatch:
    """Pack lists into one right-padded batch on the CPU.

    Raises InputError for an empty list or completion, and for a completion with an image
    placeholder: the model would put image features in its place.
    """
    _check_lists(lists, vlm.image_token_ids)
    rows = [_pack_row(entry) for entry in lists]
    length = max(ids.shape[0] for ids, _, _ in rows)
    num = max(len(entry.completions) for entry in lists)
    num_tokens = torch.zeros(len(lists), num, dtype=torch.long)
    for b, entry in enumerate(lists):
        num_tokens[b, : len(entry.completions)] = torch.tensor([len(y) for y in entry.completions])
    max_tokens = int(num_tokens.max())
    predictors, targets, places = _targets(lists, length, num, max_tokens)
    return ListBatch(
        input_ids=_right_pad([ids for ids, _, _ in rows], vlm.pad_token_id),
        segments=_right_pad([segments for _, segments, _ in rows], PADDING),
        positions=_right_pad_axes([positions for _, _, positions in rows]),
        tensors=stack_image_tensors([entry.prompt for entry in lists]),
        predictors=predictors,
        targets=targets,
        places=places,
        num_tokens=num_tokens,
        max_tokens=max_tokens,
    )


def completion_logps(model: nn.Module, batch: ListBatch) -> Tensor:
    """Summed log-probabilities (B, N) in nats, fp32; 0 where a list has no completion."""
    inner = base_model(model)
    device = inner.get_input_embeddings().weight.device
    batch = batch.to(device)
    dtype = inner.dtype
    hidden = inner.model(
        input_ids=batch.input_ids,
        attention_mask=additive_mask(causal_segments(batch.segments), dtype),
        position_ids=squeeze_positions(batch.positions),
        use_cache=False,
        **cast_tensors(batch.tensors, dtype),
    ).last_hidden_state
    logps = token_logps(inner.lm_head, hidden.flatten(0, 1)[batch.predictors], batch.targets)
    # One place a token: no two writes meet, so the sum is deterministic on every device.
    table = logps.new_zeros(batch.num_tokens.numel() * batch.max_tokens)
    table = table.index_put((batch.places,), logps)
    return table.view(*batch.num_tokens.shape, batch.max_tokens).sum(-1)


def completion_logps_separate(
    vlm: Vlm, lists: Sequence[CompletionList], *, rows_per_forward: int = 64
) -> Tensor:
    """The plain way: one full sequence a completion, image and prompt repeated. (B, N) in nats.

    Slow; the oracle of the tests and the other side of the benchmark.
    """
    _check_lists(lists, vlm.image_token_ids)
    singles = [CompletionList(entry.prompt, [y]) for entry in lists for y in entry.completions]
    parts = [
        _plain_logps(vlm, singles[start : start + rows_per_forward])
        for start in range(0, len(singles), rows_per_forward)
    ]
    flat = iter(torch.cat(parts))
    num = max(len(entry.completions) for entry in lists)
    zero = parts[0].new_zeros(())
    return torch.stack(
        [
            torch.stack([next(flat) for _ in e.completions] + [zero] * (num - len(e.completions)))
            for e in lists
        ]
    )


@torch.no_grad()
def reference_logps(model: nn.Module, batches: Iterable[ListBatch]) -> list[Tensor]:
    """Log-probabilities (B, N) of each batch under the model without its adapter, on the CPU."""
    disable = getattr(model, "disable_adapter", None)
    was_training = model.training
    model.eval()
    try:
        with disable() if callable(disable) else contextlib.nullcontext():
            return [completion_logps(model, batch).cpu() for batch in batches]
    finally:
        model.train(was_training)


def token_logps(lm_head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    """log p(target) at each position, fp32. `hidden` (K, D), `targets` (K,) -> (K,).

    Logits are made in chunks of at most LOGIT_BUDGET values; with more than one chunk the
    backward pass makes them again instead of keeping them.
    """
    vocab = lm_head.weight.shape[0]
    rows = max(1, LOGIT_BUDGET // max(1, vocab))
    if hidden.shape[0] <= rows:
        return _chunk_logps(lm_head, hidden, targets)
    chunks = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    return torch.cat(
        [checkpoint(_chunk_logps, lm_head, h, t, use_reentrant=False) for h, t in chunks]
    )


def stack_image_tensors(prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
    """Join the prompts' pixel tensors along the image axis; tiles are zero-padded to the most."""
    joined: dict[str, Tensor] = {}
    for name in prompts[0].tensors:
        parts = [prompt.tensors[name] for prompt in prompts]
        if parts[0].ndim > 2 and len({p.shape[1] for p in parts}) > 1:
            most = max(p.shape[1] for p in parts)
            parts = [F.pad(p, (0, 0) * (p.ndim - 2) + (0, most - p.shape[1])) for p in parts]
        joined[name] = torch.cat(parts)
    return joined


def cast_tensors(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Pixels in the model's dtype; sizes and grids stay whole numbers."""
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}


def squeeze_positions(positions: Tensor) -> Tensor:
    """(A, B, T) -> (B, T) for a single axis, as the model's forward wants it."""
    return positions[0] if positions.shape[0] == 1 else positions


def _chunk_logps(lm_head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    return -F.cross_entropy(lm_head(hidden).float(), targets, reduction="none")


def _check_lists(lists: Sequence[CompletionList], image_token_ids: Sequence[int]) -> None:
    if not lists:
        raise InputError("There are no lists to pack.")
    for b, entry in enumerate(lists):
        if not entry.completions:
            raise InputError("A list has no completions.", where=f"list {b} of the batch")
        for n, completion in enumerate(entry.completions):
            where = f"list {b} of the batch, completion {n}"
            if not len(completion):
                raise InputError("A completion has no tokens.", where=where)
            if placeholders := set(completion) & set(image_token_ids):
                raise InputError(
                    f"A completion holds the image placeholder token {min(placeholders)}.",
                    where=where,
                    fix="sample with this package (it bans the placeholder) or drop the answer",
                )


def _pack_row(entry: CompletionList) -> tuple[Tensor, Tensor, Tensor]:
    """`input_ids` (t,), `segments` (t,), `positions` (A, t) of one list.

    The last token of a completion predicts nothing, so it is left out.
    """
    prompt = entry.prompt
    answers = [torch.as_tensor(y[:-1], dtype=torch.long) for y in entry.completions]
    segments = [torch.zeros(prompt.num_tokens, dtype=torch.long)]
    segments += [torch.full((len(y),), n + 1) for n, y in enumerate(answers)]
    steps = torch.cat([torch.arange(len(y)) for y in answers]) + prompt.next_position
    positions = torch.cat([prompt.positions, steps.expand(prompt.positions.shape[0], -1)], dim=1)
    return torch.cat([prompt.input_ids, *answers]), torch.cat(segments), positions


def _targets(
    lists: Sequence[CompletionList], length: int, num: int, max_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`predictors`, `targets`, `places` (K,): who predicts which token, and whose it is."""
    predictors: list[int] = []
    targets: list[int] = []
    places: list[int] = []
    for b, entry in enumerate(lists):
        last_of_prefix = b * length + entry.prompt.num_tokens - 1
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


def _plain_logps(vlm: Vlm, singles: Sequence[CompletionList]) -> Tensor:
    """One row a completion, causal attention with a 2-D padding mask, logits of all positions."""
    prompts = [entry.prompt for entry in singles]
    answers = [torch.as_tensor(entry.completions[0]) for entry in singles]
    ids = _right_pad([torch.cat([p.input_ids, y]) for p, y in zip(prompts, answers, strict=True)])
    lengths = torch.tensor([p.num_tokens + len(y) for p, y in zip(prompts, answers, strict=True)])
    places = torch.arange(ids.shape[1])
    is_token = places < lengths[:, None]
    is_answer = is_token & (places >= torch.tensor([p.num_tokens for p in prompts])[:, None])
    positions = [
        torch.cat([p.positions, (p.next_position + torch.arange(len(y))).expand(axes, -1)], dim=1)
        for p, y in zip(prompts, answers, strict=True)
        if (axes := p.positions.shape[0])
    ]
    tensors = cast_tensors(stack_image_tensors(prompts), vlm.dtype)
    ids, is_answer = ids.to(vlm.device), is_answer.to(vlm.device)
    logits = base_model(vlm.model)(
        input_ids=ids,
        attention_mask=is_token.long().to(vlm.device),
        position_ids=squeeze_positions(_right_pad_axes(positions)).to(vlm.device),
        use_cache=False,
        **{name: value.to(vlm.device) for name, value in tensors.items()},
    ).logits.float()
    logps = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    summed: Tensor = (logps * is_answer[:, 1:]).sum(-1)
    return summed


def _right_pad(rows: Sequence[Tensor], value: int = 0) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def _right_pad_axes(rows: Sequence[Tensor]) -> Tensor:
    """(A, t) each -> (A, B, T)."""
    return _right_pad([row.T for row in rows]).permute(2, 0, 1)
