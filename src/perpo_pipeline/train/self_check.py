"""Before training: does the shared prefix give the same results as separate rows on this model?

In bf16 two plain runs differ too, so the allowed difference is not zero but a multiple of that
between plain runs with different padding. The padding is on the left: on the right it would not
change the rounding of the tokens before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from perpo_pipeline.errors import InputError
from perpo_pipeline.train.separate_rows import separate_lists, separate_logps
from perpo_pipeline.train.shared_prefix import (
    CompletionList,
    RowLengths,
    pack_lists,
    packed_logps,
)
from perpo_pipeline.vlm.models import Vlm, base_model
from perpo_pipeline.vlm.tensors import cast_tensors

ALLOWED = 3.0  # times the difference between plain runs
# Padding before each row, which makes kernels split it at other places, and rows per forward.
PLAIN_RUNS = ((0, None), (67, 1), (131, None))
# Allowed rounding if plain runs happen to be bit-equal. In fp32: nats, and a share of the
# log-probability; in bf16: roundings of one nat per token, which add up like a random walk.
ROUNDING_NATS, ROUNDING_SHARE, ROUNDINGS = 1e-4, 1e-5, 2.0


@dataclass(frozen=True)
class Comparison:
    """Largest |dlogp| in nats over the completions of one list.

    `shared`: between shared prefix and plain rows; `plain`: between plain runs with different
    padding; `rounding`: a difference that is always allowed; `magnitude`: the largest |logp|.
    """

    shared: float
    plain: float
    rounding: float
    magnitude: float

    @property
    def allowed(self) -> float:
        """The largest `shared` that counts as exact."""
        return max(ALLOWED * self.plain, self.rounding)

    def __str__(self) -> str:
        return (
            f"shared prefix against separate forwards: {self.shared:.2g} nats "
            f"(allowed {self.allowed:.2g}; separate forwards among themselves {self.plain:.2g}, "
            f"log-probabilities up to {self.magnitude:.3g})"
        )


@torch.no_grad()
def compare_forwards(
    vlm: Vlm, entry: CompletionList, *, max_tokens: int, row_lengths: RowLengths = "any"
) -> Comparison:
    """Compute one list's log-probabilities both ways, at most `max_tokens` per forward.

    The shared prefix runs with the graphs of the reference, so nothing is compiled for this check
    alone: rows of bucketed lengths are filled up to a full forward's.
    """
    was_training = vlm.model.training
    vlm.model.eval()
    lists = _as_in_a_batch(entry, max_tokens)
    fill = max_tokens if row_lengths == "bucketed" else 0
    try:
        packed = pack_lists(vlm, lists, row_lengths=row_lengths, min_tokens=fill)
        shared = packed_logps(vlm.model, packed)
        # The plain rows have lengths of their own.
        with torch.compiler.set_stance("force_eager"):
            plain = [
                torch.cat(list(_plain(vlm, entry, padding, max_tokens if rows is None else 1)))
                for padding, rows in PLAIN_RUNS
            ]
    finally:
        vlm.model.train(was_training)
    return Comparison(
        shared=_largest((shared - plain[0][: shared.shape[1]])[packed.mask.to(shared.device)]),
        plain=max(_largest(a - b) for a in plain for b in plain),
        rounding=max(
            ROUNDING_NATS + ROUNDING_SHARE * _largest(plain[0]),
            ROUNDINGS * torch.finfo(vlm.dtype).eps * max(map(len, entry.completions)) ** 0.5,
        ),
        magnitude=_largest(plain[0]),
    )


def check_shared_prefix(
    vlm: Vlm, entry: CompletionList, *, max_tokens: int, row_lengths: RowLengths = "any"
) -> Comparison:
    """Raise InputError with the figures if the shared prefix is not exact on this model."""
    found = compare_forwards(vlm, entry, max_tokens=max_tokens, row_lengths=row_lengths)
    if not found.shared <= found.allowed:  # NaN is not allowed either
        raise InputError(
            f"the shared-prefix forward is not exact on this model: {found}",
            fix="use train.forward: separate (slow and safe), and report the model",
        )
    return found


@torch.no_grad()
def check_own_head(vlm: Vlm, entry: CompletionList) -> None:
    """Raise InputError if the model's logits differ from its head applied to its hidden states.

    Some untested families scale or cap the logits (`final_logit_softcapping`, `logits_scaling`),
    which neither forward here does.
    """
    one = CompletionList(entry.prompt, [max(entry.completions, key=len)])
    batch = separate_lists(vlm, [one]).to(vlm.device)
    types = {} if batch.token_types is None else {"mm_token_type_ids": batch.token_types}
    with torch.compiler.set_stance("force_eager"):  # rows of this length come only once
        logits = base_model(vlm.model)(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            use_cache=False,
            **types,
            **cast_tensors(batch.tensors, vlm.dtype),
        ).logits
        ours = separate_logps(vlm.model, batch)[0, 0]
    logps = logits[0, :-1].float().log_softmax(-1)
    logps = logps.gather(-1, batch.input_ids[0, 1:, None])[batch.is_answer[0, 1:]].sum()
    if not float((ours - logps).abs()) <= max(1e-3, 16 * torch.finfo(vlm.dtype).eps):
        raise InputError(
            f"the model's own log-probability of a completion is {float(logps):.4g} nats, here it "
            f"comes out as {float(ours):.4g}: a '{vlm.family.name}' changes its logits after the "
            "head, which is not supported",
        )


def _as_in_a_batch(entry: CompletionList, max_tokens: int) -> list[CompletionList]:
    """The list and, as far as they fit into `max_tokens` with it, its first completions again.

    So it stands next to another list: in a row of its own, or after it in one row.
    """
    left = max_tokens - entry.num_packed_tokens - entry.prompt.num_tokens
    again = []
    for completion in entry.completions:
        left -= len(completion) - 1
        if left < 0:
            break
        again.append(completion)
    return [entry, CompletionList(entry.prompt, again)] if again else [entry]


def _plain(vlm: Vlm, entry: CompletionList, padding: int, max_tokens: int) -> Iterator[Tensor]:
    longest = entry.prompt.num_tokens + max(map(len, entry.completions)) + padding
    rows = max(1, max_tokens // longest)
    for start in range(0, len(entry.completions), rows):
        some = CompletionList(entry.prompt, entry.completions[start : start + rows])
        batch = separate_lists(vlm, [some], left_padding=padding)
        yield separate_logps(vlm.model, batch)[0]


def _largest(values: Tensor) -> float:
    return float(values.abs().max())
