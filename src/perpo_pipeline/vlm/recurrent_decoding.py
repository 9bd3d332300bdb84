"""States of recurrent layers while completions grow token by token from one prefix (decoding.py).

The prefix is read once; its states are copied for each completion, and every step reads one token
for each unfinished completion. No gradients.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from perpo_pipeline.vlm.recurrent import LayerForward, LayerStates, joined


@dataclass(eq=False)
class GrowingStates:
    """The states of all recurrent layers for B prompts with `num_samples` (N) completions each.

    `layers` has each layer's states after the last token, one of G sequences for each completion
    that is kept; `kept` (G,) are these completions, as prompt * N + completion.
    """

    num_samples: int
    layers: dict[int, LayerStates] = field(default_factory=dict)
    kept: Tensor | None = None

    def read_prefixes(self, is_token: Tensor, *, left_padding: bool) -> "PrefixSteps":
        """The layers' steps over B prompts; `is_token` (B, P) is false at padding on the left.

        Without `left_padding` (see `takes_left_padding`) only prompts of equal length run together.
        """
        self.kept = torch.arange(len(is_token) * self.num_samples, device=is_token.device)
        return PrefixSteps(self, is_token, left_padding)

    def read_tokens(self, prompts: Tensor, completions: Tensor) -> "TokenSteps":
        """The layers' steps over one token of each of these completions.

        `prompts` (R,) and `completions` (R, W), each of which the call before had, too.
        """
        wanted = (prompts[:, None] * self.num_samples + completions).flatten()
        kept = self.kept
        if kept is None:
            raise ValueError("no prefix was read before the first token")
        if torch.equal(kept, wanted):
            return TokenSteps(self, None)
        place = torch.zeros(int(kept.max()) + 1, dtype=torch.long, device=kept.device)
        place[kept] = torch.arange(len(kept), device=kept.device)
        self.kept = wanted
        return TokenSteps(self, place[wanted])


@dataclass(frozen=True, eq=False)
class PrefixSteps:
    """Read left-padded prompts and keep copies of their states; see `GrowingStates`."""

    states: GrowingStates
    is_token: Tensor
    left_padding: bool

    def run(self, layer: int, forward: LayerForward, hidden: Tensor) -> Tensor:
        """(B, P, D) -> (B, P, D); zero at padding that the layer does not read."""
        if self.left_padding:
            after = LayerStates()
            mask = None if bool(self.is_token.all()) else self.is_token
            output = forward(hidden, after, mask)
        else:
            output, after = self._by_length(forward, hidden)
        self.states.layers[layer] = after.repeated([self.states.num_samples] * len(hidden))
        return output

    def _by_length(self, forward: LayerForward, hidden: Tensor) -> tuple[Tensor, LayerStates]:
        lengths = self.is_token.sum(1)
        output, order, states = torch.zeros_like(hidden), [], []
        for length in sorted(set(lengths.tolist())):
            rows = (lengths == length).nonzero().squeeze(1)
            after = LayerStates()
            output[rows, -length:] = forward(hidden[rows, -length:], after, None)
            order.append(rows)
            states.append(after)
        back = torch.cat(order).argsort()
        return output, joined(states).map(lambda state: state[back])


@dataclass(frozen=True, eq=False)
class TokenSteps:
    """Read one token of each completion; `moved` (G,) picks its states, None if all stay."""

    states: GrowingStates
    moved: Tensor | None

    def run(self, layer: int, forward: LayerForward, hidden: Tensor) -> Tensor:
        """(R, W, D) -> (R, W, D)."""
        before, moved = self.states.layers[layer], self.moved
        after = before if moved is None else before.map(lambda state: state[moved])
        self.states.layers[layer] = after
        return forward(hidden.flatten(0, 1)[:, None], after, None).view(hidden.shape)
