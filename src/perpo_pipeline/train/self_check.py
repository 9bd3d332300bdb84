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
from perpo_pipeline.models import Vlm
from perpo_pipeline.train.concatenated import concatenate_lists, concatenated_logps
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists, packed_logps

ALLOWED = 3.0  # times the difference between plain runs
PADDINGS = (0, 67, 131)  # tokens before each row: kernels then cut all of it in other places
# What fp32 rounding does where plain runs happen to agree to the bit: nats, and a nat of log-prob.
ROUNDING = (1e-4, 1e-5)


@dataclass(frozen=True)
class Comparison:
    """Largest |dlogp| in nats over the completions of one list.

    `shared` between the shared prefix and the plain way, `plain` between plain runs with different
    padding, `magnitude` the largest |logp|.
    """

    shared: float
    plain: float
    magnitude: float

    @property
    def allowed(self) -> float:
        """The largest `shared` of a model on which the shared prefix is exact."""
        return max(ALLOWED * self.plain, ROUNDING[0] + ROUNDING[1] * self.magnitude)

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
        shared = packed_logps(vlm.model, pack_lists(vlm, [entry]))[0]
        # The plain rows have other shapes: compiling kernels for them would take minutes.
        with torch.compiler.set_stance("force_eager"):
            plain = [
                torch.cat(list(_plain(vlm, entry, padding, max_tokens))) for padding in PADDINGS
            ]
    finally:
        vlm.model.train(was_training)
    return Comparison(
        shared=_largest(shared - plain[0]),
        plain=max(_largest(a - b) for a in plain for b in plain),
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


def _plain(vlm: Vlm, entry: CompletionList, padding: int, max_tokens: int) -> Iterator[Tensor]:
    longest = entry.prompt.num_tokens + max(map(len, entry.completions)) + padding
    rows = max(1, max_tokens // longest)
    for start in range(0, len(entry.completions), rows):
        some = CompletionList(entry.prompt, entry.completions[start : start + rows])
        batch = concatenate_lists(vlm, [some], left_padding=padding)
        yield concatenated_logps(vlm.model, batch)[0]


def _largest(values: Tensor) -> float:
    return float(values.abs().max())
