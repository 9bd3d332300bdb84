"""The losses over ranked lists: PerPO and its siblings, as pure functions of tensors.

A *list* is the N completions of one prompt. All losses but SFT have the form

    loss_b = - sum_ij w_ij * log sigmoid(beta * (s_i - s_j)),    s_i = policy_logps_i - ref_logps_i

over the pairs with r_i > r_j, and differ only in the weights w_ij, which sum to 1 for each
list. A list without such a pair has no preference to teach: its loss and gradient are exactly 0.

Shapes: `B` lists of up to `N` completions. Short lists are padded; `mask` is True at real
entries. Identical completions are merged, and `counts` holds how often each was sampled: loss and
gradient are those of the unmerged list. Log-probabilities are summed over the tokens of a
completion, its end token included, in nats. Rewards and counts carry no gradient. Half-precision
inputs are computed in float32.

`label_smoothing` is the probability e that a preference is the wrong way round: log sigmoid(m)
becomes (1 - e) * log sigmoid(m) + e * log sigmoid(-m), whose optimum is the finite margin
m = log((1 - e) / e). Source: Mitchell 2023, "A note on DPO with noisy preferences",
https://ericmitchell.ai/cdpo.pdf. `best_completion_nll` is an anchor to add to any of these losses.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.train.loss_inputs import (
    Lists,
    at_least_float32,
    best_and_worst,
    check_beta,
    pairwise_difference,
)

ROUNDINGS, SUM_ROUNDINGS = 4, 8  # of a token's log-probability, and of the sum (tie_tolerance)


def perpo_loss(
    policy_logps: Tensor,
    ref_logps: Tensor,
    rewards: Tensor,
    *,
    beta: float = 0.1,
    gamma: float = 0.5,
    label_smoothing: float = 0.0,
    counts: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """PerPO: every strict pair, weighted by its reward gap to the power gamma.

    All tensors are `(B, N)`, the result is `(B,)`. A pair of two merged completions has the weight
    `c_i * c_j * (r_i - r_j)^gamma`. Raises ConfigError for beta <= 0, gamma < 0 or label_smoothing
    outside [0, 0.5), InputError for a reward that is not finite or a count below 1, and ValueError
    for shapes that differ.
    Source: PerPO eq. 5 and 6, arXiv:2502.04371.
    """
    if not 0 <= gamma < float("inf"):
        raise ConfigError(f"gamma is {gamma}; it must be 0 or more", fix="the paper's best is 0.5")
    lists = Lists.of(policy_logps, ref_logps, rewards, counts, mask)
    weights = lists.strict * lists.pair_counts * _relative_gaps(lists) ** gamma
    return _pairwise_logistic(
        lists.scores, _normalise(weights), lists.strict, beta, label_smoothing
    )


def lipo_loss(
    policy_logps: Tensor,
    ref_logps: Tensor,
    rewards: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    counts: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """LiPO with the pairwise logistic loss: all strict pairs weigh the same (PerPO with gamma 0).

    Shapes and errors as in `perpo_loss`. Source: Liu et al. 2024, arXiv:2402.01878v3, eq. 5,
    normalised like PerPO eq. 5.
    """
    return perpo_loss(
        policy_logps,
        ref_logps,
        rewards,
        beta=beta,
        gamma=0.0,
        label_smoothing=label_smoothing,
        counts=counts,
        mask=mask,
    )


def lipo_lambda_loss(
    policy_logps: Tensor,
    ref_logps: Tensor,
    rewards: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    counts: Tensor | None = None,
    mask: Tensor | None = None,
    ties: Tensor | None = None,
) -> Tensor:
    """LiPO-lambda: every strict pair, weighted by the change in DCG if it were swapped.

    w_ij = |G_i - G_j| * |1/D_i - 1/D_j| before normalisation, with G = 2^r - 1, D = log(1 + rank)
    and the rank by the current score s, which carries no gradient. Tied scores share the mean of
    1/D over their ranks; ranks run over the unmerged list. If no strict pair differs in rank (the
    first step, where the policy still is the reference and all s are 0), the weights are
    |G_i - G_j|: the expectation over a random order, so that training can start. So they are where
    all s of a list lie within its `ties` `(B,)`, see `tie_tolerance`.

    Shapes and errors as in `perpo_loss`. Source: Liu et al. 2024, arXiv:2402.01878v3, eq. 8.
    """
    lists = Lists.of(policy_logps, ref_logps, rewards, counts, mask)
    gains = torch.exp2(lists.rewards) - 1
    weights = lists.strict * lists.pair_counts * pairwise_difference(gains).abs()
    discounts = _tied_discounts(lists.scores.detach(), lists.counts)
    ranked = weights * pairwise_difference(discounts).abs()
    some_pair_is_ranked = ranked.sum((1, 2)) > 0
    if ties is not None:
        some_pair_is_ranked &= _spread(lists) > ties
    weights = torch.where(some_pair_is_ranked[:, None, None], ranked, weights)
    return _pairwise_logistic(
        lists.scores, _normalise(weights), lists.strict, beta, label_smoothing
    )


def dpo_loss(
    policy_logps: Tensor,
    ref_logps: Tensor,
    rewards: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    counts: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """DPO on the best and the worst completion of each list.

    If several completions share the best or the worst reward, the loss is the mean over all pairs
    of a best and a worst one, each as often as it was sampled: the expectation over a random
    choice, so that the order of the list does not matter.

    Shapes and errors as in `perpo_loss`. Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7.
    """
    lists = Lists.of(policy_logps, ref_logps, rewards, counts, mask)
    best, worst = best_and_worst(lists)
    weights = lists.strict * lists.pair_counts * (best[:, :, None] & worst[:, None, :])
    return _pairwise_logistic(
        lists.scores, _normalise(weights), lists.strict, beta, label_smoothing
    )


def mdpo_loss(
    policy_logps: Tensor,
    ref_logps: Tensor,
    rewards: Tensor,
    *,
    negative_logps: Tensor,
    negative_ref_logps: Tensor,
    beta: float = 0.1,
    counts: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """mDPO: DPO, and the best completion's image against another one, and an anchor.

        loss = dpo_loss - log sigmoid(beta (s_best - n_best)) - log sigmoid(beta s_best)

    `negative_logps` and `negative_ref_logps` `(B, N)` are log-probabilities of the same completions
    where the prompt has a wrong image, and n is their difference; only those of the best are read.
    The anchor asks that the best be likelier than under the reference (delta 0, as in the code).
    Bests of equal reward count as in `dpo_loss`; a list without a strict pair has loss 0.

    Shapes and errors as in `perpo_loss`. Source: Wang et al. 2024, arXiv:2406.11839, and its code,
    where the wrong image is a random crop of the image.
    """
    lists = Lists.of(policy_logps, ref_logps, rewards, counts, mask)
    best, _ = best_and_worst(lists)
    nothing = ~(best & lists.strict.any(2))
    wrong = Lists.of(negative_logps, negative_ref_logps, rewards, counts, ~nothing)
    of_image = -F.logsigmoid(beta * (lists.scores.masked_fill(nothing, 0.0) - wrong.scores))
    anchor = -F.logsigmoid(beta * lists.scores.masked_fill(nothing, 0.0))
    pairs = dpo_loss(policy_logps, ref_logps, rewards, beta=beta, counts=counts, mask=mask)
    weights = wrong.counts.to(pairs.dtype)
    total = weights.sum(1).clamp(min=1)
    return pairs + ((of_image + anchor) * weights).sum(1) / total


def sft_nll(target_logps: Tensor) -> Tensor:
    """SFT: the negative log-probability of each prompt's targets, summed over their tokens.

    `target_logps` `(B, N)` is summed over each target's tokens, in nats and 0 at padding; the
    result is `(B,)`. A step's loss divides the sum by the number of target tokens.
    """
    return -target_logps.sum(1)


def sft_loss(target_logps: Tensor, num_tokens: Tensor) -> Tensor:
    """SFT: the negative log-probability of the target, as a mean over its tokens.

    `target_logps` is the summed log-probability of the ground truth in nats and `num_tokens` the
    number of its tokens, end token included; both have the same shape, as has the result. An entry
    of 0 tokens is padding, with loss and gradient 0. Raises ValueError for shapes that differ.
    For the mean over all tokens of a batch: `(sft_loss(l, n) * n).sum() / n.sum()`.
    """
    if target_logps.shape != num_tokens.shape:
        raise ValueError(f"num_tokens is {tuple(num_tokens.shape)}, not like the log-probs")
    is_target = num_tokens > 0
    logps = at_least_float32(target_logps.masked_fill(~is_target, 0.0))
    return -logps / num_tokens.clamp(min=1)


def best_completion_nll(
    policy_logps: Tensor,
    rewards: Tensor,
    num_tokens: Tensor,
    *,
    counts: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The anchor: the best completion's negative log-probability, as a mean over its tokens.

    For `loss + sft_weight * anchor`: a list loss rewards only the margin, and may lower the best
    completion as long as the others fall further. All tensors are `(B, N)`, `num_tokens` counts
    the tokens of a completion with its end token; the result is `(B,)`, in nats per token. If
    several completions share the best reward, the result is the mean over them, each as often as
    it was sampled, so in a list without a preference all count. A list of padding gives 0, with
    gradient 0.

    Errors as in `perpo_loss`. Source: RPO, Pang et al. 2024, arXiv:2404.19733.
    """
    lists = Lists.of(policy_logps, torch.zeros_like(policy_logps), rewards, counts, mask)
    per_token = sft_loss(lists.scores, num_tokens)
    best, _ = best_and_worst(lists)
    anchor = _mean_over(per_token, best, lists.counts.to(per_token.dtype))
    return anchor.masked_fill(~lists.mask.any(1), 0.0)


def tie_tolerance(ref_logps: Tensor, num_tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """How far scores s of a list may be apart and still be equal but for rounding, `(B,)` in nats.

    Policy and reference read a list beside other lists, so even with the same weights their
    log-probabilities differ by rounding. A token's is rounded in the model's `dtype`, by a nat or
    by the completion's mean per token, whichever is larger; over a completion the roundings add up
    like a random walk, and the sum is rounded in fp32. The factors are measured on the testbed:
    they cover every pair of forwards and completions. `ref_logps`, `num_tokens` `(B, N)`, 0 at
    padding.
    """
    size = ref_logps.abs()
    per_token = (size / num_tokens.clamp(min=1)).clamp(min=1)
    tokens = ROUNDINGS * torch.finfo(dtype).eps * per_token * num_tokens.sqrt()
    return (tokens + SUM_ROUNDINGS * torch.finfo(torch.float32).eps * size).amax(1)


@dataclass(frozen=True)
class ListDiagnostics:
    """Diagnostics of each list; every tensor is `(B,)`, NaN where undefined.

    `reward_accuracy`: share of the unmerged list's strict pairs that s ranks correctly; a tie of s
    counts one half (so 0.5, chance, before the first step). NaN without a strict pair.
    `implicit_margin`: mean s of the best completions minus that of the worst, in nats, not scaled
    by beta. `best_logp`, `worst_logp`: mean policy log-probability of these, in nats. NaN if the
    whole list is masked. Average with `torch.nanmean`.
    """

    reward_accuracy: Tensor
    implicit_margin: Tensor
    best_logp: Tensor
    worst_logp: Tensor


@torch.no_grad()
def diagnose_lists(
    policy_logps: Tensor,
    ref_logps: Tensor,
    rewards: Tensor,
    *,
    counts: Tensor | None = None,
    mask: Tensor | None = None,
    ties: Tensor | None = None,
) -> ListDiagnostics:
    """Reward accuracy, implicit margin and log-probabilities of best and worst, list by list.

    Scores that differ by no more than the list's `ties` `(B,)` count as tied (see `tie_tolerance`;
    without it, equal ones). Inputs and errors as in `perpo_loss`; no gradient.
    """
    lists = Lists.of(policy_logps, ref_logps, rewards, counts, mask)
    difference = pairwise_difference(lists.scores)
    tolerance = 0.0 if ties is None else ties[:, None, None]
    right = (difference > tolerance) + 0.5 * (difference.abs() <= tolerance)
    weights = lists.strict * lists.pair_counts
    best, worst = best_and_worst(lists)
    logps = at_least_float32(policy_logps)
    return ListDiagnostics(
        reward_accuracy=(weights * right).sum((1, 2)) / weights.sum((1, 2)),
        implicit_margin=_mean_over(lists.scores, best, lists.counts)
        - _mean_over(lists.scores, worst, lists.counts),
        best_logp=_mean_over(logps, best, lists.counts),
        worst_logp=_mean_over(logps, worst, lists.counts),
    )


def _relative_gaps(lists: Lists) -> Tensor:
    """Reward gaps of the strict pairs over the largest of the list, in (0, 1]; 1 elsewhere.

    The factor drops out when weights are normalised. Relative gaps cannot all underflow to 0 at
    a high gamma, which would leave a list with preferences without a loss.
    """
    gaps = pairwise_difference(lists.rewards).masked_fill(~lists.strict, 0.0)
    largest = gaps.amax((1, 2), keepdim=True) if gaps.numel() else gaps
    return torch.where(lists.strict, gaps / torch.where(largest > 0, largest, 1.0), 1.0)


def _spread(lists: Lists) -> Tensor:
    """The largest score of each list minus its smallest, `(B,)`; 0 without completions."""
    if not lists.mask.shape[1]:
        return lists.scores.new_zeros(len(lists.mask))
    scores = lists.scores.detach()
    highest = scores.masked_fill(~lists.mask, -torch.inf).amax(1)
    lowest = scores.masked_fill(~lists.mask, torch.inf).amin(1)
    return (highest - lowest).clamp(min=0)


def _tied_discounts(scores: Tensor, counts: Tensor) -> Tensor:
    """1/D(rank) by descending score, (B, N); ties share the mean over their ranks.

    An entry with count c takes c ranks, as it would in the unmerged list.
    """
    ahead = ((scores[:, None, :] > scores[:, :, None]) * counts[:, None, :]).sum(2)
    tied = ((scores[:, None, :] == scores[:, :, None]) * counts[:, None, :]).sum(2)
    num_ranks = int(counts.sum(1).max()) if counts.numel() else 0
    ranks = torch.arange(1, num_ranks + 1, dtype=scores.dtype, device=scores.device)
    total = F.pad((1 / torch.log1p(ranks)).cumsum(0), (1, 0))  # total[k] = sum over ranks 1..k
    last = (ahead + tied).long()
    return (total[last] - total[ahead.long()]) / tied.clamp(min=1)


def _normalise(weights: Tensor) -> Tensor:
    """Weights that sum to 1 for each list, (B, N, N); all 0 where no pair has any."""
    total = weights.sum((1, 2), keepdim=True)
    return weights / torch.where(total > 0, total, 1.0)


def _pairwise_logistic(
    scores: Tensor, weights: Tensor, used: Tensor, beta: float, label_smoothing: float
) -> Tensor:
    """`-sum_ij w_ij log sigmoid(beta (s_i - s_j))`, smoothed, over used pairs, (B, N) -> (B,)."""
    check_beta(beta)
    if not 0 <= label_smoothing < 0.5:
        raise ConfigError(
            f"label_smoothing is {label_smoothing}; it must be in [0, 0.5)",
            fix="0 takes every preference as given; at 0.5 there would be none left",
        )
    margins = (beta * pairwise_difference(scores)).masked_fill(~used, 0.0)
    # logsigmoid, not log(1 + exp): finite at any margin, with a gradient that is exact.
    log_likelihoods = F.logsigmoid(margins)
    if label_smoothing:  # log sigmoid(-m) = log sigmoid(m) - m: one term says both
        log_likelihoods = log_likelihoods - label_smoothing * margins
    return -(weights.to(margins.dtype) * log_likelihoods).sum((1, 2))


def _mean_over(values: Tensor, where: Tensor, counts: Tensor) -> Tensor:
    """Mean of the chosen entries, each as often as its count, (B, N) -> (B,)."""
    weights = where * counts
    return (values.masked_fill(~where, 0.0) * weights).sum(1) / weights.sum(1)
