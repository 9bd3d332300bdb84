"""Before a run trains: does the shared prefix give what the plain way gives, on this very model?

In bf16 two plain runs differ too, so the measure is how far apart plain runs with different
padding are, not zero. The padding is on the left: behind a row it would leave the rounding of
everything before it as it was.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from perpo_pipeline.errors import InputError
from perpo_pipeline.train.concatenated import concatenate_lists, concatenated_logps
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists, packed_logps
from perpo_pipeline.vlm.models import Vlm, base_model
from perpo_pipeline.vlm.tensors import cast_tensors

ALLOWED = 3.0  # times the difference between plain runs
# Tokens before each row, so that kernels cut all of it in other places, and rows a forward.
PLAIN_RUNS = ((0, None), (67, 1), (131, None))
# What rounding does where plain runs happen to agree to the bit. In fp32: nats, and a share of the
# log-probability; in bf16: roundings of a nat a token, which add up like a random walk.
ROUNDING_NATS, ROUNDING_SHARE, ROUNDINGS = 1e-4, 1e-5, 2.0


@dataclass(frozen=True)
class Comparison:
    """Largest |dlogp| in nats over the completions of one list.

    `shared` between the shared prefix and the plain way, `plain` between plain runs with different
    padding, `rounding` what is never held against it, `magnitude` the largest |logp|.
    """

    shared: float
    plain: float
    rounding: float
    magnitude: float

    @property
    def allowed(self) -> float:
        """The largest `shared` of a model on which the shared prefix is exact."""
        return max(ALLOWED * self.plain, self.rounding)

    def __str__(self) -> str:
        return (
            f"shared prefix against separate forwards: {self.shared:.2g} nats "
            f"(allowed {self.allowed:.2g}; separate forwards among themselves {self.plain:.2g}, "
            f"log-probabilities up to {self.magnitude:.3g})"
        )


@torch.no_grad()
def compare_forwards(vlm: Vlm, entry: CompletionList, *, max_tokens: int) -> Comparison:
    """Compute one list's log-probabilities both ways; plain rows at most `max_tokens` at a time."""
    was_training = vlm.model.training
    vlm.model.eval()
    try:
        # Twice, as lists stand in a batch: beside each other, or behind each other in one row.
        shared = packed_logps(vlm.model, pack_lists(vlm, [entry, entry]))
        # The plain rows have other shapes: compiling kernels for them would take minutes.
        with torch.compiler.set_stance("force_eager"):
            plain = [
                torch.cat(list(_plain(vlm, entry, padding, max_tokens if rows is None else 1)))
                for padding, rows in PLAIN_RUNS
            ]
    finally:
        vlm.model.train(was_training)
    return Comparison(
        shared=_largest(shared - plain[0]),
        plain=max(_largest(a - b) for a in plain for b in plain),
        rounding=max(
            ROUNDING_NATS + ROUNDING_SHARE * _largest(plain[0]),
            ROUNDINGS * torch.finfo(vlm.dtype).eps * max(map(len, entry.completions)) ** 0.5,
        ),
        magnitude=_largest(plain[0]),
    )


def check_shared_prefix(vlm: Vlm, entry: CompletionList, *, max_tokens: int) -> Comparison:
    """Raise InputError with the figures where the shared prefix is not what it should be."""
    found = compare_forwards(vlm, entry, max_tokens=max_tokens)
    if not found.shared <= found.allowed:  # NaN is not allowed either
        raise InputError(
            f"the shared-prefix forward is not exact on this model: {found}",
            fix="use train.forward: concatenated (slow and safe), and report the model",
        )
    return found


@torch.no_grad()
def check_own_head(vlm: Vlm, entry: CompletionList) -> None:
    """Raise InputError where the model's own logits are not those of its head on its hidden states.

    Some untried families scale or cap them (`final_logit_softcapping`, `logits_scaling`), which
    neither forward here does.
    """
    one = CompletionList(entry.prompt, [max(entry.completions, key=len)])
    batch = concatenate_lists(vlm, [one]).to(vlm.device)
    types = {} if batch.token_types is None else {"mm_token_type_ids": batch.token_types}
    logits = base_model(vlm.model)(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        use_cache=False,
        **types,
        **cast_tensors(batch.tensors, vlm.dtype),
    ).logits
    logps = logits[0, :-1].float().log_softmax(-1)
    logps = logps.gather(-1, batch.input_ids[0, 1:, None])[batch.is_answer[0, 1:]].sum()
    ours = concatenated_logps(vlm.model, batch)[0, 0]
    if not float((ours - logps).abs()) <= max(1e-3, 16 * torch.finfo(vlm.dtype).eps):
        raise InputError(
            f"the model's own log-probability of a completion is {float(logps):.4g} nats, here it "
            f"comes out as {float(ours):.4g}: a '{vlm.family.name}' changes its logits after the "
            "head, which is not supported",
        )


def _plain(vlm: Vlm, entry: CompletionList, padding: int, max_tokens: int) -> Iterator[Tensor]:
    longest = entry.prompt.num_tokens + max(map(len, entry.completions)) + padding
    rows = max(1, max_tokens // longest)
    for start in range(0, len(entry.completions), rows):
        some = CompletionList(entry.prompt, entry.completions[start : start + rows])
        batch = concatenate_lists(vlm, [some], left_padding=padding)
        yield concatenated_logps(vlm.model, batch)[0]


def _largest(values: Tensor) -> float:
    return float(values.abs().max())
