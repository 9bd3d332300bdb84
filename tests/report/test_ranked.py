"""The weights of pairs on the page are those of the losses."""

import numpy as np
import pytest
import torch

from perpo_pipeline.config.methods import METHODS
from perpo_pipeline.report.ranked import compares_answers, pair_weights

REWARDS = np.array([0.9, 0.7, 0.7, 0.25, 0.0])
COUNTS = np.array([1.0, 3.0, 1.0, 2.0, 1.0])


def test_the_weights_of_perpo_are_derived_by_hand():
    """Rewards 1, 0.75, 0 with gamma 0.5: gaps 0.25, 1, 0.75 weigh 0.5, 1, 0.866 of 2.366."""
    weights = pair_weights(np.array([1, 0.75, 0]), np.ones(3), {"method": "perpo", "gamma": 0.5})
    expected = np.array([[0, 0.5, 1], [0, 0, 0.75**0.5], [0, 0, 0]])
    assert weights == pytest.approx(expected / expected.sum())


@pytest.mark.parametrize("method", ["perpo", "lipo", "lipo-lambda", "dpo"])
def test_the_weights_are_the_gradient_of_the_loss_at_the_first_step(method):
    """At s = 0 the derivative of -log sigmoid(s_i - s_j) by s_i is -1/2, by s_j 1/2."""
    loss = METHODS[method].load_loss()
    more = {"gamma": 0.5} if "gamma" in METHODS[method].settings else {}
    policy = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    rewards, counts = torch.tensor(REWARDS)[None], torch.tensor(COUNTS)[None]
    loss(
        policy, torch.zeros_like(policy), rewards, beta=1.0, counts=counts.to(torch.int64), **more
    ).sum().backward()
    weights = pair_weights(REWARDS, COUNTS, {"method": method, "gamma": 0.5})
    assert weights.sum() == pytest.approx(1)
    assert policy.grad[0].numpy() == pytest.approx(-(weights.sum(1) - weights.sum(0)) / 2)


def test_equal_rewards_and_other_methods_have_no_weights():
    perpo = {"method": "perpo", "gamma": 0.0}
    assert not pair_weights(np.array([0.5, 0.5]), np.ones(2), perpo).any()
    assert not pair_weights(REWARDS, COUNTS, {"method": "sft"}).any()
    assert not compares_answers({"method": "sft"}) and compares_answers(perpo)
