"""When two ways to compute the same log-probabilities agree.

In bf16 two plain runs differ too, so the allowed difference is not zero but a multiple of that
between plain runs with different padding. The padding is on the left: on the right it would not
change the rounding of the tokens before it.
"""

from dataclasses import dataclass

import torch

ALLOWED = 3.0  # times the difference between plain runs
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

    @property
    def is_exact(self) -> bool:
        """Whether the ways agree; NaN does not."""
        return self.shared <= self.allowed

    def __str__(self) -> str:
        return (
            f"shared prefix against separate forwards: {self.shared:.2g} nats "
            f"(allowed {self.allowed:.2g}; separate forwards among themselves {self.plain:.2g}, "
            f"log-probabilities up to {self.magnitude:.3g})"
        )


def allowed_rounding(dtype: torch.dtype, magnitude: float, longest: int) -> float:
    """Nats that rounding may change; `longest` is the number of tokens of the longest answer."""
    walked = ROUNDINGS * torch.finfo(dtype).eps * float(longest) ** 0.5
    return max(ROUNDING_NATS + ROUNDING_SHARE * magnitude, float(walked))


def rounding_of_kernels(dtype: torch.dtype, magnitude: float, longest: int) -> float:
    """`allowed_rounding` between kernels for many tokens and those for one token at a time.

    Each rounds logits of its own, so a token's log-probability may differ by a rounding of itself,
    and those of `longest` tokens add up like a random walk.
    """
    walked = torch.finfo(dtype).eps * magnitude / float(longest) ** 0.5
    return max(allowed_rounding(dtype, magnitude, longest), float(walked))
