"""Losses that look at a whole list at once, beside the sums over pairs of losses.py.

Shapes, counts, masks, units and errors are those of losses.py. Here, too, a list without a pair
r_i > r_j has loss and gradient 0, completions of equal reward are not ranked against each other by
a likelihood, and merged completions give the loss and gradient of the unmerged list.
"""

import torch
from torch import Tensor

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.train.loss_inputs import Lists, check_beta, pairwise_difference


def list_mle_loss(
    policy_logps: Tensor,
    ref_logps: Tensor,
    rewards: Tensor,
    *,
    beta: float = 0.1,
    counts: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """ListMLE: minus the Plackett-Luce log-likelihood of the list's order, by implicit rewards.

        loss = - sum_i log( e^(beta s_i) / (e^(beta s_i) + sum_{j: r_j < r_i} e^(beta s_j)) )

    The sum is over the completions of the unmerged list, and is not normalised: a list of N
    different rewards has N - 1 terms. Two completions make it DPO. Sources: Rafailov et al. 2023,
    arXiv:2305.18290, appendix A.3; ListMLE, Xia et al. 2008, which is the DPO-PL of Liu et al.
    2024, arXiv:2402.01878.
    """
    check_beta(beta)
    lists = Lists.of(policy_logps, ref_logps, rewards, counts, mask)
    scaled = beta * lists.scores
    return _plackett_luce(scaled, scaled[:, None, :], lists)


def pro_loss(
    policy_logps: Tensor,
    ref_logps: Tensor,
    rewards: Tensor,
    *,
    num_tokens: Tensor,
    counts: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """PRO: the Plackett-Luce likelihood of the order, by the policy's mean log-probabilities.

        loss = - sum_i log( e^(m_i / T_i) / (e^(m_i / T_i) + sum_{j: r_j < r_i} e^(m_j / T_ij)) )

    with m = policy_logps / num_tokens, T_ij = 1 / (r_i - r_j) and T_i the smallest T_ij: the
    paper's final objective, with its temperatures. It has no beta, and does not use the reference.
    The paper's second term is the trainer's anchor (`sft_weight`), which is a mean over tokens too.
    `num_tokens` `(B, N)` counts the tokens of each completion, its end token included.

    The paper's order has no ties; the authors' code gives each completion of equal reward that
    comes later the constant term e^0. Here it has none, so the order of the list does not matter.
    Source: PRO, Song et al. 2023, arXiv:2306.17492, and its code.
    """
    lists = Lists.of(policy_logps, torch.zeros_like(ref_logps), rewards, counts, mask)
    if num_tokens.shape != policy_logps.shape:
        raise ValueError(f"num_tokens is {tuple(num_tokens.shape)}, not like the log-probs")
    means = lists.scores / num_tokens.clamp(min=1)
    gaps = pairwise_difference(lists.rewards).masked_fill(~lists.strict, 0.0).to(means.dtype)
    largest = gaps.amax(2) if gaps.numel() else means
    return _plackett_luce(means * largest, means[:, None, :] * gaps, lists)


def infonca_loss(
    policy_logps: Tensor,
    ref_logps: Tensor,
    rewards: Tensor,
    *,
    beta: float = 0.1,
    reward_temperature: float = 0.1,
    counts: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """InfoNCA: the cross-entropy of a softmax of implicit rewards to a softmax of rewards.

        loss = - sum_i p_i log q_i,    p = softmax(r / reward_temperature),    q = softmax(beta s)

    over the unmerged list. Its optimum is finite: s_i - s_j = (r_i - r_j) / (beta *
    reward_temperature) for every pair, so completions of equal reward are drawn to equal s. As the
    temperature falls to 0 the target is the best completion alone; two completions then make it
    DPO. Raises ConfigError for a temperature that is not above 0.

    Sources: Chen et al. 2024, arXiv:2402.05369 (InfoNCA; `reward_temperature` is the
    `temperature_alpha` of its code); the top-one cross-entropy of ListNet, Cao et al. 2007.
    """
    check_beta(beta)
    if not 0 < reward_temperature < float("inf"):
        raise ConfigError(
            f"reward_temperature is {reward_temperature}; it must be above 0",
            fix="0.1 is a start for rewards from 0 to 1",
        )
    lists = Lists.of(policy_logps, ref_logps, rewards, counts, mask)
    scaled = beta * lists.scores
    copies = lists.counts.clamp(min=1).log()
    highest = lists.rewards.masked_fill(~lists.mask, -torch.inf)
    highest = highest.amax(1, keepdim=True) if highest.numel() else highest
    wanted = (lists.rewards - highest) / reward_temperature + copies
    target = wanted.masked_fill(~lists.mask, -torch.inf).softmax(1).to(scaled.dtype)
    logits = (scaled + copies.to(scaled.dtype)).masked_fill(~lists.mask, -torch.inf)
    losses = logits.logsumexp(1) - (target * scaled).sum(1)
    return losses.masked_fill(~lists.strict.any(2).any(1), 0.0)


def _plackett_luce(own: Tensor, below: Tensor, lists: Lists) -> Tensor:
    """`-sum_i c_i log(e^own_i / (e^own_i + sum_{j: r_j < r_i} c_j e^below_ij))`, `(B,)`.

    `own` is `(B, N)`, `below` `(B, N, N)` or `(B, 1, N)`. A completion with none below it has a
    term of exactly 0.
    """
    copies = lists.counts.clamp(min=1).log().to(own.dtype)
    others = (below + copies[:, None, :]).masked_fill(~lists.strict, -torch.inf)
    terms = torch.cat([own[:, :, None], others], dim=2).log_softmax(2)[:, :, 0]
    return -(lists.counts.to(own.dtype) * terms).sum(1)
