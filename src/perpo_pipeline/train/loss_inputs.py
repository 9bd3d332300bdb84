"""The inputs of a loss over ranked lists, checked and with the padding made harmless."""

from dataclasses import dataclass

import torch
from torch import Tensor

from perpo_pipeline import advice
from perpo_pipeline.errors import ConfigError, InputError


@dataclass(frozen=True)
class Lists:
    """The inputs of a loss with the padding made harmless (0 in every tensor)."""

    scores: Tensor  # (B, N) s = policy - reference, nats; the only one with a gradient
    rewards: Tensor  # (B, N)
    counts: Tensor  # (B, N) multiplicities, 0 at padding
    mask: Tensor  # (B, N) bool, True at real entries
    strict: Tensor  # (B, N, N) bool, True where r_i > r_j and both are real
    pair_counts: Tensor  # (B, N, N) c_i * c_j

    @classmethod
    def of(
        cls,
        policy_logps: Tensor,
        ref_logps: Tensor,
        rewards: Tensor,
        counts: Tensor | None,
        mask: Tensor | None,
    ) -> "Lists":
        """Check and mask the inputs of a loss, `(B, N)` each; errors as in `perpo_loss`."""
        _check_shapes(policy_logps, ref_logps, rewards, counts, mask)
        if mask is None:
            mask = torch.ones_like(rewards, dtype=torch.bool)
        # Padding is set to 0 before the subtraction: its values, NaN included, must reach neither
        # the loss nor, as 0 * inf, the gradient.
        policy, reference, rewards = (
            at_least_float32(tensor.masked_fill(~mask, 0.0))
            for tensor in (policy_logps, ref_logps.detach(), rewards.detach())
        )
        counts = torch.ones_like(rewards) if counts is None else counts.detach().to(rewards.dtype)
        counts = counts.masked_fill(~mask, 0.0)
        check_values(rewards, counts, mask)
        both_real = mask[:, :, None] & mask[:, None, :]
        return cls(
            scores=policy - reference,
            rewards=rewards,
            counts=counts,
            mask=mask,
            strict=(rewards[:, :, None] > rewards[:, None, :]) & both_real,
            pair_counts=counts[:, :, None] * counts[:, None, :],
        )


def _check_shapes(policy_logps: Tensor, *others: Tensor | None) -> None:
    shapes = [tuple(tensor.shape) for tensor in (policy_logps, *others) if tensor is not None]
    if policy_logps.dim() != 2 or len(set(shapes)) > 1:
        raise ValueError(f"all tensors of a loss must have one shape (B, N), got {shapes}")


def check_values(rewards: Tensor, counts: Tensor, mask: Tensor) -> None:
    """Refuse values that comparisons would silently skip: NaN is neither above nor below.

    On CUDA the device itself stops the program, so that the host need not wait for it. Training
    checks the values before they go there.
    """
    usable = (rewards.isfinite() & ((counts > 0) | ~mask)).all()
    message = "a completion has a reward that is not finite or a count below 1"
    if usable.is_cuda:
        torch._assert_async(usable, message)
    elif not bool(usable):
        raise InputError(
            message,
            fix=f"make both again: {advice.command('score')}, then {advice.command('filter')}",
        )


def check_beta(beta: float) -> None:
    """Raise ConfigError for a beta that is no scale."""
    if not 0 < beta < float("inf"):
        raise ConfigError(f"beta is {beta}; it must be above 0", fix="the paper's best is 0.1")


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision as float32; wider types as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def pairwise_difference(values: Tensor) -> Tensor:
    """`values[i] - values[j]`, (B, N) -> (B, N, N)."""
    return values[:, :, None] - values[:, None, :]


def best_and_worst(lists: Lists) -> tuple[Tensor, Tensor]:
    """Where the best and the worst rewards of each list are, `(B, N)` bool each, ties included."""
    highest = lists.rewards.masked_fill(~lists.mask, -torch.inf)
    lowest = lists.rewards.masked_fill(~lists.mask, torch.inf)
    if not lists.rewards.shape[1]:
        return lists.mask, lists.mask
    best = (highest == highest.amax(1, keepdim=True)) & lists.mask
    worst = (lowest == lowest.amin(1, keepdim=True)) & lists.mask
    return best, worst
