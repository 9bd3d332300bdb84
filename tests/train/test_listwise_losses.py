"""Losses of whole lists against hand-derived values, loops over the unmerged list, and the formulas
of their authors' code."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.train.listwise_losses import infonca_loss, list_mle_loss, pro_loss
from perpo_pipeline.train.losses import dpo_loss

Loss = Callable[..., Tensor]
quick = settings(max_examples=40, deadline=None)
drawn_lists = st.integers(2, 6).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(-20, 0), min_size=n, max_size=n),
        st.lists(st.sampled_from([0.0, 0.125, 0.3, 0.5, 1.0]), min_size=n, max_size=n),
        st.lists(st.integers(1, 4), min_size=n, max_size=n),
        st.lists(st.integers(1, 30), min_size=n, max_size=n),
    )
)


def row(*values: float) -> Tensor:
    """One list, `(1, N)`."""
    return torch.tensor([values], dtype=torch.float64)


def grad_of(loss: Loss, logps: Tensor, rewards: Tensor, **options) -> Tensor:
    at = logps.clone().requires_grad_()
    loss(at, torch.zeros_like(at), rewards, **options).sum().backward()
    assert at.grad is not None
    return at.grad


def unmerged(*columns: list, counts: list[int]) -> list[tuple]:
    """The rows of the unmerged list."""
    return [
        one for one, c in zip(zip(*columns, strict=True), counts, strict=True) for _ in range(c)
    ]


# --- ListMLE -------------------------------------------------------------------------------------


def test_list_mle_matches_a_list_of_three_derived_by_hand():
    """s = (2, 0, 1), beta .5: beta s = (1, 0, .5), in the order of rewards (1, .75, 0) as it is.

    log(e^1 + e^0 + e^.5) - 1 = log 5.367003 - 1 = .680270; log(e^0 + e^.5) - 0 = .974077.
    """
    policy, reference = row(-3, -7, -4), row(-5, -7, -5)
    loss = list_mle_loss(policy, reference, row(1, 0.75, 0), beta=0.5)
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(0.680270 + 0.974077, abs=1e-6)


def test_list_mle_starts_at_the_likelihood_of_a_random_order():
    """All s are 0: N! orders, so log 24. Gradients by hand, beta 1: the best of 4 has -3/4; the

    second +1/4 - 2/3, the third +1/4 + 1/3 - 1/2, the worst +1/4 + 1/3 + 1/2.
    """
    rewards = row(0.2, 0.9, 0.0, 0.5)
    assert list_mle_loss(row(0, 0, 0, 0), row(0, 0, 0, 0), rewards).item() == pytest.approx(
        math.log(24)
    )
    grad = grad_of(list_mle_loss, row(0, 0, 0, 0), rewards, beta=1.0)
    torch.testing.assert_close(grad, row(1 / 12, -3 / 4, 13 / 12, -5 / 12))


def test_list_mle_of_ties_and_copies_is_derived_by_hand():
    """Rewards (1, .5, .5, 0), counts (2, 1, 1, 3), all s 0.

    Below each best are 2 + 3 = 5, so log 6 twice; below each of the tied 3, so log 4 each.
    """
    zeros = row(0, 0, 0, 0)
    loss = list_mle_loss(zeros, zeros, row(1, 0.5, 0.5, 0), counts=torch.tensor([[2, 1, 1, 3]]))
    assert loss.item() == pytest.approx(2 * math.log(6) + 2 * math.log(4))


@quick
@given(drawn_lists)
def test_list_mle_equals_a_loop_over_the_unmerged_list(drawn):
    scores, rewards, counts, _ = drawn
    entries = unmerged(scores, rewards, counts=counts)
    expected = 0.0
    for s, r in entries:
        below = [0.3 * other for other, lower in entries if lower < r]
        expected += math.log(sum(map(math.exp, [0.3 * s, *below]))) - 0.3 * s
    loss = list_mle_loss(
        row(*scores), row(*scores) * 0, row(*rewards), beta=0.3, counts=torch.tensor([counts])
    )
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_list_mle_equals_raxs():
    rax = pytest.importorskip("rax")
    import jax.numpy as jnp

    scores, rewards = row(1.5, -2, 0.3, 4), row(0.1, 0.9, 0.4, 0.6)
    theirs = rax.listmle_loss(jnp.asarray(scores[0].numpy()), jnp.asarray(rewards[0].numpy()))
    ours = list_mle_loss(scores, scores * 0, rewards, beta=1.0)
    assert ours.item() == pytest.approx(float(theirs), rel=1e-5)


# --- PRO -----------------------------------------------------------------------------------------


def test_pro_matches_a_list_of_three_derived_by_hand():
    """Means m = (-6/3, -8/2, -1/1) = (-2, -4, -1), rewards (1, .6, 0).

    Stage 1: gaps .4 and 1, the largest 1: -2 * 1, against -4 * .4 = -1.6 and -1 * 1:
    log(e^-2 + e^-1.6 + e^-1) + 2 = log .705111 + 2 = 1.650600.
    Stage 2: gap .6: -4 * .6 = -2.4 against -1 * .6: log(e^-2.4 + e^-.6) + 2.4 = 1.952978.
    """
    loss = pro_loss(
        row(-6, -8, -1), row(0, 0, 0), row(1, 0.6, 0), num_tokens=torch.tensor([[3, 2, 1]])
    )
    assert loss.item() == pytest.approx(1.650600 + 1.952978, abs=1e-5)


def test_pro_at_equal_means_pushes_each_log_probability_by_its_gap_and_length():
    """Both means are -2, gap .8: log 2, and d/dm is -+.8 / 2; over 4 and 2 tokens -.1 and +.2."""
    logps, rewards, tokens = row(-8, -4), row(0.9, 0.1), torch.tensor([[4, 2]])
    loss = pro_loss(logps, row(0, 0), rewards, num_tokens=tokens)
    assert loss.item() == pytest.approx(math.log(2))
    grad = grad_of(pro_loss, logps, rewards, num_tokens=tokens)
    torch.testing.assert_close(grad, row(-0.1, 0.2))


def authors_pro(means: Tensor, rewards: Tensor) -> Tensor:
    """The loss of PRO's code (process_manager.py) for one list in the order of its rewards."""
    total = means.new_zeros(())
    for k in range(len(means) - 1):
        temperatures = rewards[k] - rewards[k + 1 :]
        own = means[k] * temperatures.max()
        total = total + ((own.exp() + (means[k + 1 :] * temperatures).exp().sum()).log() - own)
    return total


@quick
@given(st.lists(st.floats(-6, -0.1), min_size=2, max_size=6), st.integers(0, 99))
def test_pro_has_the_loss_and_gradient_of_its_authors_code(means, seed):
    order = torch.randperm(len(means), generator=torch.Generator().manual_seed(seed))
    rewards = torch.linspace(1, 0, len(means), dtype=torch.float64) ** 2
    tokens = torch.arange(1, len(means) + 1)
    theirs_at = torch.tensor(means, dtype=torch.float64).requires_grad_()
    expected = authors_pro(theirs_at, rewards)
    ours_at = (theirs_at.detach() * tokens)[None, order].requires_grad_()
    found = pro_loss(
        ours_at, torch.zeros_like(ours_at), rewards[None, order], num_tokens=tokens[None, order]
    )
    torch.testing.assert_close(found, expected[None])
    (theirs,) = torch.autograd.grad(expected, theirs_at)
    (ours,) = torch.autograd.grad(found.sum(), ours_at)
    torch.testing.assert_close(ours[0] * tokens[order], theirs[order])


@quick
@given(drawn_lists)
def test_pro_equals_a_loop_over_the_unmerged_list(drawn):
    logps, rewards, counts, tokens = drawn
    means = [logp / n for logp, n in zip(logps, tokens, strict=True)]
    entries = unmerged(means, rewards, counts=counts)
    expected = 0.0
    for m, r in entries:
        below = [(other, r - lower) for other, lower in entries if lower < r]
        if below:
            own = m * max(gap for _, gap in below)
            expected += math.log(math.exp(own) + sum(math.exp(o * g) for o, g in below)) - own
    loss = pro_loss(
        row(*logps),
        row(*logps) * 0,
        row(*rewards),
        num_tokens=torch.tensor([tokens]),
        counts=torch.tensor([counts]),
    )
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_pro_does_not_use_the_reference():
    inputs = {"num_tokens": torch.ones(1, 2, dtype=torch.long)}
    near, far = (pro_loss(row(-1, -2), at, row(1, 0), **inputs) for at in (row(0, 0), row(-9, 3)))
    assert torch.equal(near, far)
    with pytest.raises(ValueError, match="num_tokens"):
        pro_loss(row(-1, -2), row(0, 0), row(1, 0), num_tokens=torch.ones(2))


# --- InfoNCA -------------------------------------------------------------------------------------


def test_infonca_matches_a_list_of_three_derived_by_hand():
    """beta s = (1, 0, .5), log-sum 1.680270 as above: -log q = (.680270, 1.680270, 1.180270).

    r / tau = (2, 1.5, 0) at tau .5: e^ = 7.389056, 4.481689, 1, sum 12.870745, so p = (.574097,
    .348208, .077696), and the loss .574097 * .680270 + .348208 * 1.680270 + .077696 * 1.180270.
    """
    loss = infonca_loss(
        row(-3, -7, -4), row(-5, -7, -5), row(1, 0.75, 0), beta=0.5, reward_temperature=0.5
    )
    assert loss.item() == pytest.approx(0.390541 + 0.585083 + 0.091702, abs=1e-5)


def test_infonca_starts_with_the_target_minus_the_share_of_each_completion():
    """All s are 0: the loss is log 4 for counts (1, 1, 2), and d/ds = beta (c / 4 - c p).

    r / tau = (log 3, log 2, 0): e^ = 3, 2, 1 twice, so c p = (3, 2, 2) / 7.
    """
    rewards, counts = row(math.log(3), math.log(2), 0), torch.tensor([[1, 1, 2]])
    options = {"beta": 0.3, "reward_temperature": 1.0, "counts": counts}
    loss = infonca_loss(row(0, 0, 0), row(0, 0, 0), rewards, **options)
    assert loss.item() == pytest.approx(math.log(4))
    grad = grad_of(infonca_loss, row(0, 0, 0), rewards, **options)
    torch.testing.assert_close(grad, 0.3 * row(1 / 4 - 3 / 7, 1 / 4 - 2 / 7, 2 / 4 - 2 / 7))


def test_infonca_is_at_rest_where_implicit_rewards_are_proportional_to_rewards():
    """s = r / (beta tau) + any constant; there the loss is the entropy of the target."""
    rewards = row(0.9, 0.9, 0.4, 0.1)
    scores = rewards / (0.2 * 0.5) + 7
    options = {"beta": 0.2, "reward_temperature": 0.5}
    assert grad_of(infonca_loss, scores, rewards, **options).abs().max() < 1e-15
    target = (rewards / 0.5).softmax(1)
    entropy = -(target * target.log()).sum()
    loss = infonca_loss(scores, scores * 0, rewards, **options)
    assert loss.item() == pytest.approx(entropy.item())


@quick
@given(drawn_lists, st.sampled_from([0.05, 0.3, 2.0]))
def test_infonca_has_the_formula_of_its_authors_code_over_the_unmerged_list(drawn, temperature):
    scores, rewards, counts, _ = drawn
    s, r = torch.tensor(unmerged(scores, rewards, counts=counts), dtype=torch.float64).unbind(1)
    expected = -((r / temperature).softmax(-1) * (0.3 * s).log_softmax(-1)).sum()
    if len(set(rewards)) == 1:
        expected = expected * 0
    loss = infonca_loss(
        row(*scores),
        row(*scores) * 0,
        row(*rewards),
        beta=0.3,
        reward_temperature=temperature,
        counts=torch.tensor([counts]),
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10, abs=1e-12)


def test_infonca_of_two_completions_is_dpo_as_its_temperature_falls():
    s, r = row(1.5, -2), row(0.2, 0.9)
    loss = infonca_loss(s, s * 0, r, reward_temperature=1e-3)
    torch.testing.assert_close(loss, dpo_loss(s, s * 0, r))


def test_infonca_equals_raxs_softmax_loss():
    rax = pytest.importorskip("rax")
    import jax.numpy as jnp

    scores, rewards = row(1.5, -2, 0.3, 4), row(0.1, 0.9, 0.4, 0.6)
    target = (rewards / 0.2).softmax(1)
    theirs = rax.softmax_loss(jnp.asarray(scores[0].numpy()), jnp.asarray(target[0].numpy()))
    ours = infonca_loss(scores, scores * 0, rewards, beta=1.0, reward_temperature=0.2)
    assert ours.item() == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_not_a_scale_is_refused(temperature: float):
    with pytest.raises(ConfigError, match="reward_temperature is"):
        infonca_loss(row(1, 0), row(0, 0), row(1, 0), reward_temperature=temperature)


# --- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [list_mle_loss, infonca_loss])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_log_ratios_of_ten_thousand_stay_finite(loss: Loss, dtype: torch.dtype):
    """A best 1e4 nats down and a worst 1e4 up: beta * 2e4, with gradients of -+beta."""
    wrong, rewards = row(-1e4, 1e4).to(dtype), torch.tensor([[1.0, 0.0]])
    more = {"reward_temperature": 1e-3} if loss is infonca_loss else {}
    found = loss(wrong, torch.zeros_like(wrong), rewards, **more)
    assert found.item() == pytest.approx(2000, rel=4e-3)
    assert loss(-wrong, torch.zeros_like(wrong), rewards, **more).item() == 0
    grad = grad_of(loss, wrong, rewards, **more)
    torch.testing.assert_close(grad.double(), row(-0.1, 0.1), rtol=4e-3, atol=0)


def test_half_precision_is_computed_in_float32():
    """beta s = 25.6 against 0: log(1 + e^-25.6) = 7.6e-12, which bfloat16 rounds to 0."""
    s = row(256, 0).to(torch.bfloat16)
    loss = list_mle_loss(s, torch.zeros_like(s), row(0, 1))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(F.softplus(torch.tensor(25.6)).item(), rel=1e-6)
