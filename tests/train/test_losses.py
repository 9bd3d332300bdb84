"""Losses against hand-derived values, a double loop in float64, and outside implementations."""

import math
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.train.listwise_losses import infonca_loss, list_mle_loss, pro_loss
from perpo_pipeline.train.losses import (
    best_completion_nll,
    diagnose_lists,
    dpo_loss,
    lipo_lambda_loss,
    lipo_loss,
    mdpo_loss,
    perpo_loss,
    sft_loss,
    tie_tolerance,
)

Loss = Callable[..., Tensor]
quick = settings(max_examples=40, deadline=None)


def pro_of_single_tokens(policy: Tensor, reference: Tensor, rewards: Tensor, **options) -> Tensor:
    """PRO where every completion has one token, so that its mean is its sum."""
    tokens = torch.ones_like(policy, dtype=torch.long)
    return pro_loss(policy, reference, rewards, num_tokens=tokens, **options)


def mdpo_behind_half(policy: Tensor, reference: Tensor, rewards: Tensor, **options) -> Tensor:
    """mDPO where a wrong image halves each completion's log-probability."""
    wrong = {"negative_logps": policy / 2, "negative_ref_logps": reference / 2}
    return mdpo_loss(policy, reference, rewards, **wrong, **options)


PAIRWISE_LOSSES = [perpo_loss, lipo_loss, lipo_lambda_loss, dpo_loss]
BETA_LOSSES = [*PAIRWISE_LOSSES, list_mle_loss, infonca_loss]
LIST_LOSSES = [*BETA_LOSSES, pro_of_single_tokens, mdpo_behind_half]


def row(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """One list, `(1, N)`."""
    return torch.tensor([values], dtype=dtype)


def zeros_like_list(rewards: Tensor) -> Tensor:
    return torch.zeros(rewards.shape, dtype=torch.float64)


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def pair_loss(s_better: float, s_worse: float, beta: float, smoothing: float = 0.0) -> float:
    margin = beta * (s_better - s_worse)
    return (1 - smoothing) * softplus(-margin) + smoothing * softplus(margin)


def grad_of(loss: Loss, logps: Tensor, reference: Tensor, rewards: Tensor, **options) -> Tensor:
    logps = logps.clone().requires_grad_()
    loss(logps, reference, rewards, **options).sum().backward()
    assert logps.grad is not None
    return logps.grad


# --- hand-derived values -------------------------------------------------------------------------


def test_perpo_matches_a_list_of_three_derived_by_hand():
    """r = (1, .75, 0), gamma = .5: gaps .25, 1, .75, roots .5, 1, sqrt(.75), sum 1.5 + sqrt(.75).

    s = (2, 0, 1), beta = .5: margins 2, 1, -1 for the pairs (0,1), (0,2), (1,2), times beta
    1, .5, -.5, so softplus(-1) = .313262, softplus(-.5) = .474077, softplus(.5) = .974077.
    Loss = (.5 * .313262 + 1 * .474077 + .866025 * .974077) / 2.366025 = .623105.
    """
    policy, reference = row(-3, -7, -4), row(-5, -7, -5)
    loss = perpo_loss(policy, reference, row(1, 0.75, 0), beta=0.5, gamma=0.5)
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(0.623105, abs=1e-6)


def test_lipo_matches_the_same_list_derived_by_hand():
    """The mean of the three pair losses above: (.313262 + .474077 + .974077) / 3 = .587139."""
    loss = lipo_loss(row(-3, -7, -4), row(-5, -7, -5), row(1, 0.75, 0), beta=0.5)
    assert loss.item() == pytest.approx(0.587139, abs=1e-6)


def test_lipo_lambda_matches_a_list_of_three_derived_by_hand():
    """r = (1, .5, 0): G = (1, .414214, 0); s = (2, 0, 1): ranks 1, 3, 2.

    1/D = 1/log 2 = 1.442695, 1/log 4 = .721348, 1/log 3 = .910239, in list order. Pairs
    (0,1): .585786 * .721348 = .422555; (0,2): 1 * .532456 = .532456;
    (1,2): .414214 * .188892 = .078242; sum 1.033253. Pair losses as above:
    (.422555 * .313262 + .532456 * .474077 + .078242 * .974077) / 1.033253 = .446175.
    """
    loss = lipo_lambda_loss(row(2, 0, 1), row(0, 0, 0), row(1, 0.5, 0), beta=0.5)
    assert loss.item() == pytest.approx(0.446175, abs=1e-5)


def test_dpo_takes_the_best_and_the_worst_of_the_list():
    """Best is entry 2 (s = 1), worst entry 0 (s = -1): softplus(-.1 * 2) = .598139."""
    loss = dpo_loss(row(-1, 5, 1), row(0, 0, 0), row(0.1, 0.5, 0.9), beta=0.1)
    assert loss.item() == pytest.approx(0.598139, abs=1e-6)


def test_dpo_averages_over_tied_bests_and_worsts():
    """Bests s = 2 and 0, worsts s = 1 and -3: the mean of the four pair losses at beta 1."""
    expected = pair_loss(2, 1, 1) + pair_loss(2, -3, 1) + pair_loss(0, 1, 1) + pair_loss(0, -3, 1)
    loss = dpo_loss(row(2, 1, 0, -3), row(0, 0, 0, 0), row(0.9, 0.1, 0.9, 0.1), beta=1.0)
    assert loss.item() == pytest.approx(expected / 4, rel=1e-12)


def test_mdpo_matches_a_pair_derived_by_hand():
    """s = (2, 1), n = -1 for the best, beta .5: margins .5, 1.5 and 1, the last is the anchor:

    softplus(-.5) = .474077, softplus(-1.5) = .201413, softplus(-1) = .313262.
    """
    loss = mdpo_loss(
        row(-3, -7),
        row(-5, -8),
        row(0.9, 0.4),
        negative_logps=row(-9, math.nan),
        negative_ref_logps=row(-8, math.nan),
        beta=0.5,
    )
    assert loss.item() == pytest.approx(0.474077 + 0.201413 + 0.313262, abs=1e-6)


def authors_mdpo(logps: dict[str, Tensor], beta: float) -> Tensor:
    """The loss of mDPO's code (mdpo_trainer.py of luka-group/mDPO, `dpo_loss`), for each pair."""
    better = logps["policy best"] - logps["reference best"]
    answers = (logps["policy best"] - logps["policy worst"]) - (
        logps["reference best"] - logps["reference worst"]
    )
    images = (logps["policy best"] - logps["policy wrong image"]) - (
        logps["reference best"] - logps["reference wrong image"]
    )
    return sum((-F.logsigmoid(beta * m) for m in (answers, images, better)), torch.zeros(()))


@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize("best", [0, 1])
def test_mdpo_has_the_loss_and_gradient_of_its_authors_code(best: int, beta: float):
    names = [
        f"{w} {of}" for w in ("policy", "reference") for of in ("best", "worst", "wrong image")
    ]
    drawn = torch.randn(6, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    logps = {
        name: (values * 4 - 12).requires_grad_() for name, values in zip(names, drawn, strict=True)
    }
    expected = authors_mdpo(logps, beta)

    def pairs(of: str) -> Tensor:
        both = [logps[f"{of} best"], logps[f"{of} worst"]]
        return torch.stack(both if best == 0 else both[::-1], 1)

    def behind_wrong_image(of: str) -> Tensor:
        both = [logps[f"{of} wrong image"], torch.full((40,), math.nan)]
        return torch.stack(both if best == 0 else both[::-1], 1)

    found = mdpo_loss(
        pairs("policy"),
        pairs("reference"),
        torch.tensor([[0.7, 0.2] if best == 0 else [0.2, 0.7]]).expand(40, 2),
        negative_logps=behind_wrong_image("policy"),
        negative_ref_logps=behind_wrong_image("reference"),
        beta=beta,
    )
    torch.testing.assert_close(found, expected)
    trained = [logps[name] for name in names[:3]]
    theirs = torch.autograd.grad(expected.sum(), trained)
    for ours, their in zip(torch.autograd.grad(found.sum(), trained), theirs, strict=True):
        torch.testing.assert_close(ours, their)


def test_mdpo_averages_its_image_term_and_anchor_over_the_bests_as_often_as_sampled():
    """Bests s = 2 (twice) and 0, n = 1 and -1; worst s = 1; beta 1."""
    s, wrong = row(2, 1, 0), row(1, 5, -1)
    loss = mdpo_loss(
        s,
        s * 0,
        row(0.9, 0.1, 0.9),
        negative_logps=wrong,
        negative_ref_logps=wrong * 0,
        beta=1.0,
        counts=torch.tensor([[2, 1, 1]]),
    )
    pairs = 2 * softplus(-1) + softplus(1)
    images = 2 * softplus(-1) + softplus(-1)
    anchors = 2 * softplus(-2) + softplus(0)
    assert loss.item() == pytest.approx((pairs + images + anchors) / 3, rel=1e-12)


def test_mdpo_starts_at_three_times_log_two_and_lifts_the_best_three_times():
    """All margins are 0: -beta / 2 from each term for the best, + beta / 2 for worst and wrong."""
    zeros = [row(0, 0).requires_grad_() for _ in range(4)]
    policy, reference, wrong, wrong_reference = zeros
    mdpo = mdpo_loss(
        policy,
        reference,
        row(0.8, 0.3),
        negative_logps=wrong,
        negative_ref_logps=wrong_reference,
        beta=0.2,
    )
    mdpo.sum().backward()
    assert mdpo.item() == pytest.approx(3 * math.log(2))
    torch.testing.assert_close(policy.grad, row(-0.3, 0.1))
    torch.testing.assert_close(wrong.grad, row(0.1, 0))
    assert reference.grad is None and wrong_reference.grad is None


def test_smoothed_perpo_matches_the_same_list_derived_by_hand():
    """softplus(1) = 1.313262, so at e = .1 the pair losses are .9 * .313262 + .1 * 1.313262

    = .413262, .9 * .474077 + .1 * .974077 = .524077, .9 * .974077 + .1 * .474077 = .924077, and
    the loss (.5 * .413262 + 1 * .524077 + .866025 * .924077) / 2.366025 = .647069.
    """
    loss = perpo_loss(
        row(-3, -7, -4), row(-5, -7, -5), row(1, 0.75, 0), beta=0.5, label_smoothing=0.1
    )
    assert loss.item() == pytest.approx(0.647069, abs=1e-6)


@pytest.mark.parametrize("loss", PAIRWISE_LOSSES)
def test_a_smoothed_preference_is_satisfied_at_the_log_odds_of_a_true_label(loss: Loss):
    """d/dm of -(1-e) log sigmoid(m) - e log sigmoid(-m) is e - sigmoid(-m).

    At e = .2 that is 0 at m = log 4 (without smoothing it never is), and beyond it the better one
    is pushed down again; at m = 0 it is -.3, so -+.3 * beta for the two.
    """
    rewards, optimum = row(0.8, 0.3), math.log(4)

    def grad_at(margin: float) -> Tensor:
        s = row(margin, 0)
        options = {"beta": 1.0, "label_smoothing": 0.2}
        return grad_of(loss, s, torch.zeros_like(s), rewards, **options)

    torch.testing.assert_close(grad_at(0), row(-0.3, 0.3))
    torch.testing.assert_close(grad_at(optimum), row(0, 0), rtol=0, atol=1e-15)
    assert grad_at(optimum + 1)[0, 0] > 0.1


@pytest.mark.parametrize("loss", PAIRWISE_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_smoothing_a_pair_costs_minus_log_sigmoid_to_the_last_bit(loss: Loss, dtype):
    scores = torch.randn(50, 2, generator=torch.Generator().manual_seed(2), dtype=dtype) * 30
    rewards = torch.tensor([[0.9, 0.1]], dtype=dtype).expand(50, 2)
    found = loss(scores, torch.zeros_like(scores), rewards, beta=0.1, label_smoothing=0.0)
    assert torch.equal(found, -F.logsigmoid(0.1 * (scores[:, 0] - scores[:, 1])))


@pytest.mark.parametrize("loss", [*PAIRWISE_LOSSES, list_mle_loss])
def test_gradient_at_zero_scores_pushes_the_better_up_by_half_beta(loss: Loss):
    """d/ds of softplus(-beta m) at m = 0: -beta / 2 for the better, +beta / 2 for the worse."""
    rewards = row(0.8, 0.3)
    grad = grad_of(loss, zeros_like_list(rewards), zeros_like_list(rewards), rewards, beta=0.3)
    torch.testing.assert_close(grad, row(-0.15, 0.15))


def test_sft_is_the_mean_over_tokens_and_zero_for_padding():
    """-(-6) / 4 = 1.5; the second target is padding, whose NaN must not reach the gradient."""
    logps = torch.tensor([-6.0, math.nan], dtype=torch.float64, requires_grad=True)
    loss = sft_loss(logps, torch.tensor([4, 0]))
    loss.sum().backward()
    assert loss.tolist() == [1.5, 0.0]
    assert logps.grad is not None
    assert logps.grad.tolist() == [-0.25, 0.0]


# --- exact reductions ----------------------------------------------------------------------------

lists = st.integers(2, 7).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(-20, 20), min_size=n, max_size=n),
        st.lists(st.sampled_from([0.0, 0.125, 0.3, 0.5, 0.500001, 1.0]), min_size=n, max_size=n),
        st.lists(st.integers(1, 4), min_size=n, max_size=n),
        st.permutations(range(n)),
    )
)


@quick
@given(lists, st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 7.0]))
def test_perpo_is_dpo_for_two_completions_at_every_gamma(drawn, gamma):
    scores, rewards, _, _ = drawn
    s, r = row(*scores[:2]), row(*rewards[:2])
    reference = torch.zeros_like(s)
    torch.testing.assert_close(
        perpo_loss(s, reference, r, gamma=gamma), dpo_loss(s, reference, r), rtol=0, atol=0
    )


@quick
@given(lists)
def test_lipo_is_the_plain_mean_over_strict_pairs(drawn):
    scores, rewards, _, _ = drawn
    losses = [
        pair_loss(s_i, s_j, 0.1)
        for s_i, r_i in zip(scores, rewards, strict=True)
        for s_j, r_j in zip(scores, rewards, strict=True)
        if r_i > r_j
    ]
    expected = sum(losses) / len(losses) if losses else 0.0
    s = row(*scores)
    assert lipo_loss(s, torch.zeros_like(s), row(*rewards)).item() == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("loss", LIST_LOSSES)
@quick
@given(drawn=lists)
def test_the_order_of_the_list_does_not_matter(loss: Loss, drawn):
    scores, rewards, counts, order = drawn
    s, r, c = row(*scores), row(*rewards), torch.tensor([counts])
    reference = torch.zeros_like(s)
    expected = loss(s, reference, r, counts=c)
    shuffled = loss(s[:, order], reference, r[:, order], counts=c[:, order])
    torch.testing.assert_close(shuffled, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", LIST_LOSSES)
@quick
@given(drawn=lists)
def test_merged_completions_give_the_loss_and_gradient_of_the_unmerged_list(loss: Loss, drawn):
    scores, rewards, counts, _ = drawn
    repeat = torch.tensor(counts)
    merged = row(*scores).requires_grad_()
    unmerged = row(*scores).requires_grad_()
    reference = torch.zeros_like(merged)
    once = loss(merged, reference, row(*rewards), counts=repeat[None])
    many = loss(
        unmerged.repeat_interleave(repeat, dim=1),
        reference.repeat_interleave(repeat, dim=1),
        row(*rewards).repeat_interleave(repeat, dim=1),
    )
    torch.testing.assert_close(once, many, rtol=1e-12, atol=1e-12)
    grads = [
        torch.autograd.grad(value.sum(), at) for value, at in ((once, merged), (many, unmerged))
    ]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", BETA_LOSSES)
def test_shifting_all_log_probabilities_of_the_policy_changes_nothing(loss: Loss):
    s, r = row(1, -2, 0.5, 4), row(0.9, 0.2, 0.4, 0.6)
    reference = row(-5, -6, -7, -8)
    torch.testing.assert_close(loss(s + 3, reference, r), loss(s, reference, r))


# --- an independent double loop ------------------------------------------------------------------


def loop_perpo(scores, rewards, counts, beta, gamma, smoothing):
    total = value = 0.0
    for i, r_i in enumerate(rewards):
        for j, r_j in enumerate(rewards):
            if r_i > r_j:
                weight = counts[i] * counts[j] * math.pow(r_i - r_j, gamma)
                total += weight
                value += weight * pair_loss(scores[i], scores[j], beta, smoothing)
    return value / total if total else 0.0


def loop_lipo_lambda(scores, rewards, counts, beta):
    """Over the unmerged list, sorted by score, ties resolved by averaging over equal scores."""
    entries = [(s, r) for s, r, c in zip(scores, rewards, counts, strict=True) for _ in range(c)]
    ordered = sorted((s for s, _ in entries), reverse=True)
    ranks = defaultdict(list)
    for rank, s in enumerate(ordered, start=1):
        ranks[s].append(1 / math.log(1 + rank))
    discount = {s: sum(d) / len(d) for s, d in ranks.items()}
    pairs = [(a, b) for a in entries for b in entries if a[1] > b[1]]
    gains = [2 ** a[1] - 2 ** b[1] for a, b in pairs]
    weights = [
        gain * abs(discount[a[0]] - discount[b[0]])
        for gain, (a, b) in zip(gains, pairs, strict=True)
    ]
    if not any(weights):
        weights = gains
    losses = [pair_loss(a[0], b[0], beta) for a, b in pairs]
    return sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights) if pairs else 0.0


@quick
@given(
    lists,
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.sampled_from([0.05, 0.1, 1.0]),
    st.sampled_from([0.0, 0.1, 0.49]),
)
def test_perpo_equals_a_double_loop(drawn, gamma, beta, smoothing):
    scores, rewards, counts, _ = drawn
    s = row(*scores)
    loss = perpo_loss(
        s,
        torch.zeros_like(s),
        row(*rewards),
        beta=beta,
        gamma=gamma,
        label_smoothing=smoothing,
        counts=torch.tensor([counts]),
    )
    expected = loop_perpo(scores, rewards, counts, beta, gamma, smoothing)
    assert loss.item() == pytest.approx(expected, rel=1e-11, abs=1e-14)


@quick
@given(lists, st.booleans())
def test_lipo_lambda_equals_a_double_loop_over_the_unmerged_list(drawn, coarse):
    scores, rewards, counts, _ = drawn
    if coarse:  # so that scores tie
        scores = [float(round(s / 10)) for s in scores]
    s = row(*scores)
    loss = lipo_lambda_loss(s, torch.zeros_like(s), row(*rewards), counts=torch.tensor([counts]))
    expected = loop_lipo_lambda(scores, rewards, counts, 0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_list_whose_scores_are_tied_but_for_rounding_has_the_weights_of_tied_scores():
    """All within the tolerance, or not; each list has its own."""
    rewards = torch.tensor([[0.9, 0.1, 0.4]] * 3)
    noise = torch.tensor([[0.01, 0.0, -0.01]])
    scores = torch.cat([noise, noise, 100 * noise]).requires_grad_()
    zeros, ties = torch.zeros(3, 3), torch.tensor([0.05, 0.005, 0.05])

    def gradient(ties: Tensor | None, scores: Tensor) -> Tensor:
        return torch.autograd.grad(
            lipo_lambda_loss(scores, zeros, rewards, ties=ties).sum(), scores
        )[0]

    tied = gradient(None, zeros.clone().requires_grad_())
    ranked = gradient(None, scores)
    found = gradient(ties, scores)
    torch.testing.assert_close(found[0], tied[0], atol=1e-3, rtol=0)
    assert (ranked[0] - tied[0]).abs().max() > 0.005
    assert torch.equal(found[1:], ranked[1:])


def test_the_tolerance_of_ties_follows_from_the_precision():
    """26 tokens of 0.5 and of 11 nats (what bf16 forwards of a random 7B model differ by: 0.7)."""
    logps = torch.tensor([[-13.0, 0.0], [-290.0, -1.0]])
    tokens = torch.tensor([[26, 0], [26, 2]])
    coarse, fine = (tie_tolerance(logps, tokens, d) for d in (torch.bfloat16, torch.float32))
    torch.testing.assert_close(coarse, torch.tensor([0.1594, 1.7775]), atol=1e-3, rtol=0)
    torch.testing.assert_close(fine, torch.tensor([1.48e-5, 3.04e-4]), atol=1e-6, rtol=0)


def test_lipo_lambda_has_a_gradient_at_the_first_step():
    """All s are 0 and share one discount: the weights are the gain differences, normalised.

    G = (1, 2^.5 - 1, 0): weights .585786, 1, .414214 over 2; the best gets -(.585786 + 1) / 2
    times beta / 2.
    """
    rewards = row(1, 0.5, 0)
    zeros = zeros_like_list(rewards)
    grad = grad_of(lipo_lambda_loss, zeros, zeros, rewards, beta=0.1)
    assert grad[0, 0].item() == pytest.approx(-0.05 * 1.585786 / 2, rel=1e-6)


# --- outside implementations ---------------------------------------------------------------------


def trl_loss(
    policy: Tensor,
    reference: Tensor,
    beta: float,
    *,
    terms: dict[str, float] | None = None,
    smoothing: float = 0.0,
    num_tokens: int = 1,
) -> Tensor:
    """The loss that TRL's own DPOTrainer computes from given log-probabilities, (B, [best, worst]).

    A stand-in for the model hands the trainer completions of `num_tokens` tokens that share the
    log-probability evenly. `terms` weighs TRL's loss types; without it, its "sigmoid".
    """
    pytest.importorskip("trl")
    from trl import DPOTrainer

    terms = terms or {"sigmoid": 1.0}

    def stack(logps: Tensor) -> Tensor:  # TRL's batch is [chosen, rejected]; a prompt token first
        tokens = logps.T.reshape(-1, 1) / num_tokens
        return torch.cat([torch.zeros_like(tokens), tokens.expand(-1, num_tokens)], dim=1)

    def model(**_: object) -> SimpleNamespace:
        log_probs = stack(policy)
        zeros = torch.zeros_like(log_probs)
        return SimpleNamespace(
            log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )

    model.training = True  # type: ignore[attr-defined]
    trainer = SimpleNamespace(
        model=model,
        beta=beta,
        loss_types=list(terms),
        loss_weights=list(terms.values()),
        label_smoothing=smoothing,
        f_divergence_type="reverse_kl",
        ld_alpha=None,
        precompute_ref_logps=True,
        use_weighting=False,
        aux_loss_enabled=False,
        _tp_size=1,
        _total_train_tokens=0,
        _metrics=defaultdict(lambda: defaultdict(list)),
        args=SimpleNamespace(),
        accelerator=SimpleNamespace(
            device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x
        ),
    )
    rows = 2 * len(policy)
    inputs = {
        "input_ids": torch.ones(rows, 2 + num_tokens, dtype=torch.long),
        "attention_mask": torch.ones(rows, 2 + num_tokens, dtype=torch.long),
        "completion_mask": torch.tensor([[0, 0] + [1] * num_tokens] * rows),
        "ref_chosen_logps": reference[:, 0],
        "ref_rejected_logps": reference[:, 1],
    }
    return DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)


@pytest.mark.parametrize("loss", [*PAIRWISE_LOSSES, list_mle_loss])
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_two_completions_give_the_loss_and_gradient_of_trls_dpo(loss: Loss, beta: float):
    policy, reference, rewards = five_pairs()
    assert_same_loss_and_gradient(
        lambda at: loss(at, reference, rewards, beta=beta).mean(),
        lambda at: trl_loss(at, reference, beta),
        policy,
    )


@pytest.mark.parametrize("loss", PAIRWISE_LOSSES)
def test_two_completions_give_the_loss_and_gradient_of_trls_smoothed_dpo(loss: Loss):
    """TRL smooths in its "aot" loss, which sorts over the batch: in a batch of one it is DPO."""
    policy, reference, rewards = five_pairs()
    each = [slice(i, i + 1) for i in range(len(policy))]
    assert_same_loss_and_gradient(
        lambda at: loss(at, reference, rewards, beta=0.5, label_smoothing=0.3).sum(),
        lambda at: sum(
            trl_loss(at[i], reference[i], 0.5, terms={"aot": 1.0}, smoothing=0.3) for i in each
        ),
        policy,
    )


def test_dpo_with_the_anchor_gives_the_loss_and_gradient_of_trls_rpo():
    """TRL's is the mean over all tokens of the batch, so here all completions have three."""
    policy, reference, rewards = five_pairs()
    num_tokens = torch.full((5, 2), 3)
    assert_same_loss_and_gradient(
        lambda at: (
            dpo_loss(at, reference, rewards).mean()
            + 0.7 * best_completion_nll(at, rewards, num_tokens).mean()
        ),
        lambda at: trl_loss(at, reference, 0.1, terms={"sigmoid": 1, "sft": 0.7}, num_tokens=3),
        policy,
    )


def five_pairs() -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of policy and reference, and rewards, (5, [best, worst]) each."""
    generator = torch.Generator().manual_seed(0)
    policy = torch.randn(5, 2, generator=generator, dtype=torch.float64) * 8 - 30
    reference = torch.randn(5, 2, generator=generator, dtype=torch.float64) * 8 - 30
    return policy, reference, torch.tensor([[0.9, 0.1]], dtype=torch.float64).expand(5, 2)


def assert_same_loss_and_gradient(ours: Loss, theirs: Loss, at: Tensor) -> None:
    ours_at, theirs_at = at.clone().requires_grad_(), at.clone().requires_grad_()
    found, expected = ours(ours_at), theirs(theirs_at)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(found, ours_at),
        torch.autograd.grad(expected, theirs_at),
        rtol=1e-12,
        atol=1e-15,
    )


def rax_pairwise_logistic(scores: Tensor, rewards: Tensor, weights_fn, beta: float) -> float:
    """rax's loss with its weights divided by their sum over the strict pairs; inputs `(N,)`."""
    rax = pytest.importorskip("rax")
    import jax.numpy as jnp

    scaled, labels = jnp.asarray(beta * scores.numpy()), jnp.asarray(rewards.numpy())
    total = rax.pairwise_logistic_loss(
        scaled, labels, lambdaweight_fn=weights_fn, reduce_fn=jnp.sum
    )
    strict = (labels[:, None] > labels[None, :]).ravel()
    return float(total / jnp.where(strict, weights_fn(scaled, labels), 0.0).sum())


def twenty_random_completions() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(20, generator=generator) * 5, torch.rand(20, generator=generator)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_perpo_equals_raxs_pairwise_logistic_loss(gamma: float):
    def gap_weights(scores, labels, **_):
        return abs(labels[:, None] - labels[None, :]).ravel() ** gamma

    scores, rewards = twenty_random_completions()
    ours = perpo_loss(scores[None], torch.zeros(1, 20), rewards[None], gamma=gamma)
    theirs = rax_pairwise_logistic(scores, rewards, gap_weights, beta=0.1)
    assert ours.item() == pytest.approx(theirs, rel=1e-5)


def test_lipo_lambda_equals_rax_with_its_dcg_weights():
    rax = pytest.importorskip("rax")
    scores, rewards = twenty_random_completions()
    ours = lipo_lambda_loss(scores[None], torch.zeros(1, 20), rewards[None])
    theirs = rax_pairwise_logistic(scores, rewards, rax.dcg_lambdaweight, beta=0.1)
    assert ours.item() == pytest.approx(theirs, rel=1e-5)


# --- extreme inputs ------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", PAIRWISE_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_log_ratios_of_ten_thousand_stay_finite_and_exact(loss: Loss, dtype: torch.dtype):
    """The better one 1e4 nats down and the worse 1e4 up: loss beta * 2e4, gradient -+beta."""
    rewards = row(1, 0, dtype=torch.float32)
    reference = row(0, 0, dtype=dtype)
    wrong, right = row(-1e4, 1e4, dtype=dtype), row(1e4, -1e4, dtype=dtype)
    assert loss(wrong, reference, rewards).item() == pytest.approx(2000, rel=4e-3)
    assert loss(right, reference, rewards).item() == pytest.approx(0, abs=1e-30)
    grad = grad_of(loss, wrong, reference, rewards)
    torch.testing.assert_close(grad.double(), row(-0.1, 0.1), rtol=4e-3, atol=0)
    assert grad_of(loss, right, reference, rewards).abs().max() < 1e-30


@pytest.mark.parametrize("loss", PAIRWISE_LOSSES)
def test_smoothed_log_ratios_of_ten_thousand_stay_finite_and_exact(loss: Loss):
    """Margins -+2000 at e = .25: .75 * 2000 where wrong, .25 * 2000 where right."""
    s = torch.tensor([[-1e4, 1e4], [1e4, -1e4]])
    rewards = torch.tensor([[1.0, 0.0]]).expand(2, 2)
    options = {"beta": 0.1, "label_smoothing": 0.25}
    assert loss(s, torch.zeros(2, 2), rewards, **options).tolist() == [1500.0, 500.0]
    grad = grad_of(loss, s, torch.zeros(2, 2), rewards, **options)
    torch.testing.assert_close(grad, torch.tensor([[-0.075, 0.075], [0.025, -0.025]]))


@pytest.mark.parametrize("loss", LIST_LOSSES)
@pytest.mark.parametrize(
    ("rewards", "mask"),
    [
        pytest.param([0.7], [True], id="one completion"),
        pytest.param([0.7, 0.7, 0.7], [True, True, True], id="all tied"),
        pytest.param([0.7, 0.2, 0.1], [False, False, False], id="all masked"),
        pytest.param([0.7, 0.2, 0.2], [False, True, True], id="tied but for the padding"),
        pytest.param([], [], id="no completion"),
    ],
)
def test_a_list_without_a_strict_pair_has_no_loss_and_no_gradient(loss: Loss, rewards, mask):
    logps = torch.linspace(-1e4, 1e4, len(rewards))[None]
    reference, rewards = torch.zeros_like(logps), torch.tensor([rewards])
    options = {"mask": torch.tensor([mask], dtype=torch.bool)}
    assert loss(logps, reference, rewards, **options).tolist() == [0.0]
    assert not grad_of(loss, logps, reference, rewards, **options).any()


@pytest.mark.parametrize("loss", LIST_LOSSES)
@pytest.mark.parametrize("filler", [math.nan, math.inf, -math.inf, 1e30])
def test_padding_changes_nothing_whatever_it_holds(loss: Loss, filler: float):
    s, r, c = row(1, -2, 3), row(0.2, 0.9, 0.4), torch.tensor([[2, 1, 3]])
    bare = grad_of(loss, s, torch.zeros_like(s), r, counts=c)
    padding = row(filler, filler)
    padded = [torch.cat([t, padding], dim=1) for t in (s, torch.zeros_like(s), r)]
    counts = torch.cat([c, torch.tensor([[7, 7]])], dim=1)
    options = {"counts": counts, "mask": torch.tensor([[True, True, True, False, False]])}
    expected = loss(s, torch.zeros_like(s), r, counts=c)
    torch.testing.assert_close(loss(*padded, **options), expected)
    grad = grad_of(loss, *padded, **options)
    torch.testing.assert_close(grad[:, :3], bare)
    assert grad[:, 3:].tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("loss", LIST_LOSSES)
def test_lists_of_a_batch_do_not_affect_each_other(loss: Loss):
    generator = torch.Generator().manual_seed(3)
    s, reference, r = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64).unbind()
    each = torch.cat([loss(s[i : i + 1], reference[i : i + 1], r[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(loss(s, reference, r), each)


@settings(max_examples=5, deadline=None)
@given(lists, st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]))
def test_perpo_gradients_match_finite_differences(drawn, gamma):
    scores, rewards, counts, _ = drawn
    s = row(*scores).requires_grad_()
    options = {"gamma": gamma, "counts": torch.tensor([counts])}
    assert torch.autograd.gradcheck(
        lambda at: perpo_loss(at, torch.zeros_like(at), row(*rewards), **options), (s,)
    )


@pytest.mark.parametrize("loss", LIST_LOSSES[1:])
def test_gradients_of_the_siblings_match_finite_differences(loss: Loss):
    s = row(1.5, -2, 0.3, 4, -0.7).requires_grad_()
    rewards = row(0.9, 0.9, 0.4, 0.0, 0.0)
    assert torch.autograd.gradcheck(lambda at: loss(at, torch.zeros_like(at), rewards), (s,))


@pytest.mark.parametrize("loss", LIST_LOSSES)
def test_reference_and_rewards_carry_no_gradient(loss: Loss):
    tensors = [row(1, 2, 3), row(0, 1, 0), row(0.1, 0.6, 0.60000001)]
    policy, reference, rewards = (t.requires_grad_() for t in tensors)
    loss(policy, reference, rewards).sum().backward()
    assert policy.grad is not None
    assert policy.grad.isfinite().all()
    assert reference.grad is None
    assert rewards.grad is None


def test_gaps_that_underflow_at_a_high_gamma_keep_their_weight():
    """At gamma 20 a gap of 1e-20 to the power is 0 in float64; one strict pair still is DPO."""
    s, r = row(1, -1), row(1e-20, 0)
    loss = perpo_loss(s, torch.zeros_like(s), r, gamma=20)
    assert loss.item() == pytest.approx(pair_loss(1, -1, 0.1), rel=1e-12)


def test_padding_does_not_make_the_gaps_of_real_completions_vanish():
    """Against a padding of reward 0 the gap of 1e-8 at gamma 50 would underflow."""
    s, r = row(1, -1, 0), row(0.9, 0.9 - 1e-8, 0)
    mask = torch.tensor([[True, True, False]])
    loss = perpo_loss(s, torch.zeros_like(s), r, gamma=50, mask=mask)
    assert loss.item() == pytest.approx(pair_loss(1, -1, 0.1), rel=1e-12)


def test_rewards_keep_their_own_precision_when_log_probabilities_are_float32():
    """Two rewards one part in 1e12 apart tie in float32, but are a strict pair as given."""
    s = row(0, 0, dtype=torch.float32)
    assert perpo_loss(s, s, row(0.5 + 1e-12, 0.5)).item() == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("gamma", [-0.5, math.nan, math.inf])
def test_a_gamma_that_is_not_an_exponent_is_refused(gamma: float):
    s = row(1, 0)
    with pytest.raises(ConfigError, match="gamma is"):
        perpo_loss(s, s, s, gamma=gamma)


@pytest.mark.parametrize("loss", BETA_LOSSES)
@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan, math.inf])
def test_a_beta_that_is_not_a_scale_is_refused(loss: Loss, beta: float):
    s = row(1, 0)
    with pytest.raises(ConfigError, match="beta is"):
        loss(s, s, s, beta=beta)


@pytest.mark.parametrize("loss", PAIRWISE_LOSSES)
@pytest.mark.parametrize("smoothing", [-0.1, 0.5, math.nan])
def test_a_smoothing_that_leaves_no_preference_is_refused(loss: Loss, smoothing: float):
    s = row(1, 0)
    with pytest.raises(ConfigError, match="label_smoothing is"):
        loss(s, s, s, label_smoothing=smoothing)


@pytest.mark.parametrize("loss", LIST_LOSSES)
def test_shapes_that_would_broadcast_are_refused(loss: Loss):
    with pytest.raises(ValueError, match="one shape"):
        loss(torch.zeros(2, 3), torch.zeros(1, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="one shape"):
        loss(torch.zeros(3), torch.zeros(3), torch.zeros(3))


@pytest.mark.parametrize("loss", [*LIST_LOSSES, diagnose_lists])
@pytest.mark.parametrize(
    ("rewards", "counts", "message"),
    [
        ([0.1, math.nan], [1, 1], "reward"),
        ([0.1, math.inf], [1, 1], "reward"),
        ([0.1, 0.2], [1, 0], "count"),
        ([0.1, 0.2], [-1, 1], "count"),
    ],
)
def test_a_reward_or_count_that_would_be_ignored_is_refused(loss: Loss, rewards, counts, message):
    s = row(1, 0)
    with pytest.raises(InputError, match=message):
        loss(s, s, row(*rewards), counts=torch.tensor([counts]))


@pytest.mark.parametrize("loss", LIST_LOSSES)
def test_no_lists_have_no_loss(loss: Loss):
    nothing = torch.zeros(0, 3)
    assert loss(nothing, nothing, nothing).shape == (0,)


# --- the anchor on the best completion ----------------------------------------------------------


def anchor_and_grad(logps: Tensor, *args: Tensor, **options: Tensor) -> tuple[Tensor, Tensor]:
    at = logps.clone().requires_grad_()
    anchor = best_completion_nll(at, *args, **options)
    return anchor, torch.autograd.grad(anchor.sum(), at)[0]


def test_the_anchor_matches_a_list_derived_by_hand():
    """Bests are 0 and 2 with 6 / 3 = 2 and 9 / 6 = 1.5 nats per token, sampled once and thrice:

    (2 + 3 * 1.5) / 4 = 1.625. Gradients: -1/4 / 3 = -1/12 and -3/4 / 6 = -1/8.
    """
    anchor, grad = anchor_and_grad(
        row(-6, -2, -9),
        row(0.9, 0.1, 0.9),
        torch.tensor([[3, 2, 6]]),
        counts=torch.tensor([[1, 5, 3]]),
    )
    assert anchor.tolist() == [1.625]
    torch.testing.assert_close(grad, row(-1 / 12, 0, -1 / 8))


@quick
@given(lists, st.lists(st.integers(1, 30), min_size=7, max_size=7))
def test_the_anchor_depends_neither_on_order_nor_on_merging(drawn, tokens):
    scores, rewards, counts, order = drawn
    repeat = torch.tensor(counts)
    listed = row(*scores), row(*rewards), torch.tensor([tokens[: len(scores)]])
    expected, grad = anchor_and_grad(*listed, counts=repeat[None])
    shuffled, shuffled_grad = anchor_and_grad(
        *(t[:, order] for t in listed), counts=repeat[None, order]
    )
    torch.testing.assert_close(shuffled, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(shuffled_grad, grad[:, order], rtol=1e-12, atol=1e-12)
    unmerged, each = anchor_and_grad(*(t.repeat_interleave(repeat, dim=1) for t in listed))
    torch.testing.assert_close(unmerged, expected, rtol=1e-12, atol=1e-12)
    merged = torch.stack([copies.sum() for copies in each[0].split(counts)])
    torch.testing.assert_close(merged, grad[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("filler", [math.nan, math.inf, -math.inf, 1e30])
def test_the_anchor_ignores_padding_whatever_it_holds(filler: float):
    """The best of the real ones is entry 1: 8 nats over 4 tokens; the second list has none."""
    logps = torch.tensor([[-1.0, -8.0, filler], [filler, filler, filler]])
    rewards = torch.tensor([[0.2, 0.4, filler], [filler, 0.9, filler]])
    num_tokens = torch.tensor([[1, 4, 0], [0, 3, 0]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    anchor, grad = anchor_and_grad(logps, rewards, num_tokens, mask=mask)
    assert anchor.tolist() == [2.0, 0.0]
    assert grad.tolist() == [[0.0, -0.25, 0.0], [0.0, 0.0, 0.0]]


def test_a_list_without_completions_has_no_anchor():
    nothing = torch.zeros(2, 0)
    assert best_completion_nll(nothing, nothing, nothing).tolist() == [0.0, 0.0]
    nothing = torch.zeros(0, 3)
    assert best_completion_nll(nothing, nothing, nothing).shape == (0,)


def test_the_gradient_of_the_anchor_is_the_policys_alone_and_matches_finite_differences():
    rewards = row(0.9, 0.4, 0.9, 0).requires_grad_()
    num_tokens, counts = torch.tensor([[3, 5, 2, 4]]), torch.tensor([[2, 1, 1, 3]])
    logps = row(-3, -4, -5, -2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda at: best_completion_nll(at, rewards.detach(), num_tokens, counts=counts), (logps,)
    )
    best_completion_nll(logps, rewards, num_tokens, counts=counts).sum().backward()
    assert rewards.grad is None


def test_the_anchor_of_half_precision_log_probabilities_is_computed_in_float32():
    """-256 / 3 is 85.5 in bfloat16; rewards of another type do not change the result's."""
    logps = row(-256, -1, dtype=torch.bfloat16)
    anchor = best_completion_nll(logps, row(1, 0), torch.tensor([[3, 1]]))
    assert anchor.dtype == torch.float32
    assert anchor.item() == pytest.approx(256 / 3, rel=1e-6)


def test_an_anchor_for_rewards_that_cannot_be_compared_is_refused():
    s, tokens = row(1, 0), torch.tensor([[1, 1]])
    with pytest.raises(ValueError, match="num_tokens"):
        best_completion_nll(s, s, tokens[0])
    with pytest.raises(ValueError, match="one shape"):
        best_completion_nll(s, s[0], tokens)
    with pytest.raises(InputError, match="reward"):
        best_completion_nll(s, row(0.1, math.nan), tokens)


# --- diagnostics ---------------------------------------------------------------------------------


def test_diagnostics_match_values_derived_by_hand():
    """r = (.9, .5, .1), s = (1, 2, 1), counts (2, 1, 1).

    Pairs: (0,1) x2 wrong, (0,2) x2 tied = one half each, (1,2) x1 right: (0 + 1 + 1) / 5 = .4.
    """
    policy, reference = row(-4, -3, -9), row(-5, -5, -10)
    found = diagnose_lists(policy, reference, row(0.9, 0.5, 0.1), counts=torch.tensor([[2, 1, 1]]))
    assert found.reward_accuracy.item() == pytest.approx(0.4)
    assert found.implicit_margin.item() == 0.0
    assert found.best_logp.item() == -4.0
    assert found.worst_logp.item() == -9.0


def test_diagnostics_average_over_tied_bests_and_worsts():
    """Bests s = 1 (twice) and 4 -> 2; worsts s = 0 and -1 -> -.5: margin 2.5."""
    s = row(1, 4, 0, -1)
    counts = torch.tensor([[2, 1, 1, 1]])
    found = diagnose_lists(s, torch.zeros_like(s), row(0.9, 0.9, 0.1, 0.1), counts=counts)
    assert found.implicit_margin.item() == pytest.approx(2.5)
    assert found.reward_accuracy.item() == 1.0


def test_diagnostics_are_undefined_where_nothing_is_to_be_ranked():
    s = torch.zeros(2, 2)
    mask = torch.tensor([[True, True], [False, False]])
    found = diagnose_lists(s, s, torch.full((2, 2), 0.5), mask=mask)
    assert found.reward_accuracy.isnan().all()
    assert found.implicit_margin.isnan().tolist() == [False, True]
