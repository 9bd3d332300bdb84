"""Losses against hand-derived values, a double loop in float64, and outside implementations."""

import math
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.train.losses import (
    diagnose_lists,
    dpo_loss,
    lipo_lambda_loss,
    lipo_loss,
    perpo_loss,
    sft_loss,
)

LIST_LOSSES = [perpo_loss, lipo_loss, lipo_lambda_loss, dpo_loss]
Loss = Callable[..., Tensor]
quick = settings(max_examples=40, deadline=None)


def row(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """One list, `(1, N)`."""
    return torch.tensor([values], dtype=dtype)


def zeros_like_list(rewards: Tensor) -> Tensor:
    return torch.zeros(rewards.shape, dtype=torch.float64)


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def pair_loss(s_better: float, s_worse: float, beta: float) -> float:
    return softplus(-beta * (s_better - s_worse))


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


@pytest.mark.parametrize("loss", LIST_LOSSES)
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


@pytest.mark.parametrize("loss", LIST_LOSSES)
def test_shifting_all_log_probabilities_of_the_policy_changes_nothing(loss: Loss):
    s, r = row(1, -2, 0.5, 4), row(0.9, 0.2, 0.4, 0.6)
    reference = row(-5, -6, -7, -8)
    torch.testing.assert_close(loss(s + 3, reference, r), loss(s, reference, r))


# --- an independent double loop ------------------------------------------------------------------


def loop_perpo(scores, rewards, counts, beta, gamma):
    total = value = 0.0
    for i, r_i in enumerate(rewards):
        for j, r_j in enumerate(rewards):
            if r_i > r_j:
                weight = counts[i] * counts[j] * math.pow(r_i - r_j, gamma)
                total += weight
                value += weight * pair_loss(scores[i], scores[j], beta)
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
@given(lists, st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.sampled_from([0.05, 0.1, 1.0]))
def test_perpo_equals_a_double_loop(drawn, gamma, beta):
    scores, rewards, counts, _ = drawn
    s = row(*scores)
    loss = perpo_loss(
        s, torch.zeros_like(s), row(*rewards), beta=beta, gamma=gamma, counts=torch.tensor([counts])
    )
    expected = loop_perpo(scores, rewards, counts, beta, gamma)
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


def trl_sigmoid_loss(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """The loss that TRL's own DPOTrainer computes from given log-probabilities, (B, [best, worst]).

    A stand-in for the model hands the trainer one completion token a row.
    """
    pytest.importorskip("trl")
    from trl import DPOTrainer

    def stack(logps: Tensor) -> Tensor:  # TRL's batch is [chosen, rejected]; a prompt token first
        tokens = logps.T.reshape(-1, 1)
        return torch.cat([torch.zeros_like(tokens), tokens], dim=1)

    def model(**_: object) -> SimpleNamespace:
        log_probs = stack(policy)
        zeros = torch.zeros_like(log_probs)
        return SimpleNamespace(
            log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )

    model.training = True  # type: ignore[attr-defined]
    trainer = SimpleNamespace(
        model=model, beta=beta, loss_types=["sigmoid"], loss_weights=[1.0], label_smoothing=0.0,
        f_divergence_type="reverse_kl", ld_alpha=None, precompute_ref_logps=True,
        use_weighting=False, aux_loss_enabled=False, _tp_size=1, _total_train_tokens=0,
        _metrics=defaultdict(lambda: defaultdict(list)), args=SimpleNamespace(),
        accelerator=SimpleNamespace(
            device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x
        ),
    )  # fmt: skip
    rows = 2 * len(policy)
    inputs = {
        "input_ids": torch.ones(rows, 3, dtype=torch.long),
        "attention_mask": torch.ones(rows, 3, dtype=torch.long),
        "completion_mask": torch.tensor([[0, 0, 1]] * rows),
        "ref_chosen_logps": reference[:, 0],
        "ref_rejected_logps": reference[:, 1],
    }
    return DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)


@pytest.mark.parametrize("loss", LIST_LOSSES)
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_two_completions_give_the_loss_and_gradient_of_trls_dpo(loss: Loss, beta: float):
    generator = torch.Generator().manual_seed(0)
    policy = torch.randn(5, 2, generator=generator, dtype=torch.float64) * 8 - 30
    reference = torch.randn(5, 2, generator=generator, dtype=torch.float64) * 8 - 30
    rewards = torch.tensor([[0.9, 0.1]], dtype=torch.float64).expand(5, 2)
    theirs_at, ours_at = policy.clone().requires_grad_(), policy.clone().requires_grad_()
    theirs = trl_sigmoid_loss(theirs_at, reference, beta)
    ours = loss(ours_at, reference, rewards, beta=beta).mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(ours, ours_at), torch.autograd.grad(theirs, theirs_at), rtol=1e-12,
        atol=1e-15,
    )  # fmt: skip


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


@pytest.mark.parametrize("loss", LIST_LOSSES)
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
def test_padding_changes_nothing_whatever_stands_in_it(loss: Loss, filler: float):
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
def test_lists_of_a_batch_do_not_touch_each_other(loss: Loss):
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


@pytest.mark.parametrize("loss", [lipo_loss, lipo_lambda_loss, dpo_loss])
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
def test_a_gamma_that_is_no_exponent_is_refused(gamma: float):
    s = row(1, 0)
    with pytest.raises(ConfigError, match="gamma is"):
        perpo_loss(s, s, s, gamma=gamma)


@pytest.mark.parametrize("loss", LIST_LOSSES)
@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan, math.inf])
def test_a_beta_that_is_no_scale_is_refused(loss: Loss, beta: float):
    s = row(1, 0)
    with pytest.raises(ConfigError, match="beta is"):
        loss(s, s, s, beta=beta)


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
