"""Which completions are exported: by hand, and as `perpo train` chooses them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from perpo_pipeline.export.pairs import all_pairs, best_and_worst, best_of_lists
from perpo_pipeline.train.lists import TrainingList, best_against_worst

REWARDS = st.lists(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=5), min_size=1, max_size=5
)


def flat(lists: Sequence[Sequence[float]]) -> tuple[Any, Any, Any]:
    """Rewards, offsets, and token ids that differ: those of place p are p and 7."""
    sizes = [len(one) for one in lists]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return np.concatenate(lists), offsets, lambda at: [f"{p},7" for p in at.tolist()]


@given(REWARDS)
def test_the_pair_is_the_one_that_training_takes_for_dpo(lists: list[list[float]]) -> None:
    rewards, offsets, token_ids = flat(lists)
    found = best_and_worst(rewards, offsets, token_ids, 0.0)
    best = best_of_lists(rewards, offsets, token_ids)
    at = 0
    for index, one in enumerate(lists):
        ids = [[place, 7] for place in range(offsets[index], offsets[index + 1])]
        entry = TrainingList({}, ids, one, [1] * len(one))
        expected = [ids_of[0] for ids_of in best_against_worst(entry).completions]
        assert best[index] == expected[0]
        if max(one) > min(one):
            assert found.of_list[at] == index
            assert [found.chosen[at], found.rejected[at]] == expected
            at += 1
    assert at == len(found.of_list)


def test_all_pairs_are_those_whose_rewards_differ_by_the_margin() -> None:
    rewards, offsets, token_ids = flat([[0.9, 0.5, 0.5], [0.3, 0.3], [0.7, 0.4]])
    every = all_pairs(rewards, offsets, token_ids, 0.0)
    assert list(zip(every.of_list, every.chosen, every.rejected, strict=True)) == [
        (0, 0, 1),
        (0, 0, 2),
        (2, 5, 6),
    ]
    # 0.7 - 0.4 is a little below 0.3 in floating point, and still a margin of 0.3.
    assert all_pairs(rewards, offsets, token_ids, 0.3).of_list.tolist() == [0, 0, 2]
    assert all_pairs(rewards, offsets, token_ids, 0.35).of_list.tolist() == [0, 0]
    assert best_and_worst(rewards, offsets, token_ids, 0.35).of_list.tolist() == [0]
    assert not len(all_pairs(rewards, offsets, token_ids, 0.5).of_list)
