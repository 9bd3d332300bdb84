"""Lists are distributed so that processes wait little, and never for one that has ended."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import RandomSampler

from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.train.plan import (
    StepSampler,
    epoch_order,
    make_sampler,
    plan_step,
    share_out,
)
from perpo_pipeline.train.token_budget import Rows, group_by_tokens

lengths_of_lists = st.lists(st.integers(1, 1000), min_size=1, max_size=24)
rows_of_lists = st.lists(
    st.lists(st.integers(1, 1000), min_size=1, max_size=4).map(tuple), min_size=1, max_size=24
)


def each(lengths: Sequence[int]) -> list[Rows]:
    """Lists of one row each."""
    return [(tokens,) for tokens in lengths]


def test_the_longest_list_goes_first_to_the_process_with_the_fewest_tokens() -> None:
    """By hand: 9 to 0; 7 to 1; 6 to 1 (7 < 9: 13); 5 to 0 (9: 14); 4 to 1 (13: 17); 1 to 0 (15)."""
    assert share_out([4, 9, 6, 1, 7, 5], 2) == [[1, 3, 5], [0, 2, 4]]
    assert share_out([5, 5, 5], 2) == [[0, 2], [1]]
    assert share_out([5], 3) == [[0], [], []]


@given(lengths=lengths_of_lists, size=st.integers(1, 8))
def test_every_list_has_one_process_and_no_process_much_more_than_its_share(
    lengths: list[int], size: int
) -> None:
    shares = share_out(lengths, size)
    assert sorted(i for share in shares for i in share) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in share) for share in shares]
    # A list joins the least loaded process: no load exceeds the mean by more than one list.
    assert max(loads) <= sum(lengths) / size + max(lengths)
    assert share_out(lengths, size) == shares


@given(
    rows=rows_of_lists,
    size=st.integers(1, 8),
    max_tokens=st.integers(1, 3000),
    in_one_row=st.booleans(),
)
def test_all_processes_make_equally_many_forwards_and_each_list_counts_once(
    rows: list[Rows], size: int, max_tokens: int, in_one_row: bool
) -> None:
    numbers = [100 + i for i in range(len(rows))]
    lengths = [sum(own) if in_one_row else len(own) * max(own) for own in rows]
    steps = plan_step(numbers, rows, size, max_tokens, in_one_row=in_one_row)
    assert len(steps) == size
    assert len({len(step.forwards) for step in steps}) == 1
    counted: Counter[int] = Counter()
    for step in steps:
        assert step.step_lists == tuple(numbers)
        real = step.forwards[: len(step.forwards) - step.num_dummies]
        counted.update(number for forward in real for number in forward)
        for forward in real:
            tokens = [tokens for number in forward for tokens in rows[number - 100]]
            cost = sum(tokens) if in_one_row else len(tokens) * max(tokens)
            assert cost <= max_tokens or len(forward) == 1
        for forward in step.forwards[len(real) :]:
            assert [lengths[number - 100] for number in forward] == [min(lengths)]
    assert counted == Counter(numbers)


def test_one_process_keeps_its_token_budget() -> None:
    rows = each([300, 200, 310, 100, 290])
    (step,) = plan_step([7, 3, 5, 1, 9], rows, 1, 600, in_one_row=True)
    groups = group_by_tokens(rows, 600, in_one_row=True)
    assert step.forwards == tuple(tuple([7, 3, 5, 1, 9][i] for i in group) for group in groups)
    assert step.num_dummies == 0


def test_a_process_splits_its_forward_before_it_repeats_a_list() -> None:
    """By hand, at most 100 tokens per forward: 70 to 0, 60 to 1, 40 to 1 (100), 40 to 0 (110)."""
    first, second = plan_step(range(4), each([70, 60, 40, 40]), 2, 100, in_one_row=True)
    assert first.forwards == ((0,), (3,)) and second.forwards == ((1,), (2,))
    assert first.num_dummies == second.num_dummies == 0


def test_a_process_with_too_few_lists_repeats_the_shortest() -> None:
    """By hand, at most 50 tokens per forward: 80 to 0, 50 to 1, 40 to 1 (90, two forwards)."""
    first, second = plan_step(range(3), each([80, 50, 40]), 2, 50, in_one_row=True)
    assert (first.forwards, first.num_dummies) == (((0,), (2,)), 1)
    assert (second.forwards, second.num_dummies) == (((1,), (2,)), 0)
    _, idle = plan_step([8], each([80]), 2, 50, in_one_row=True)
    assert (idle.forwards, idle.num_dummies, idle.step_lists) == (((8,),), 1, (8,))


@pytest.mark.parametrize("epoch", [0, 3])
def test_the_order_is_that_of_torchs_sampler_with_the_seed_of_the_epoch(epoch: int) -> None:
    import torch

    sampler = RandomSampler(range(23), generator=torch.Generator().manual_seed(5 + epoch))
    assert epoch_order(23, 5, epoch) == list(sampler)


def steps_of(rank: int, size: int, epoch: int = 0) -> list[tuple[int, ...]]:
    sampler = StepSampler(
        each([10, 20, 30, 40, 50, 60, 70]), 3, 0, 1000, in_one_row=True, rank=rank, size=size
    )
    sampler.set_epoch(epoch)
    assert len(sampler) == 3
    return [step.step_lists for (step,) in sampler]


def test_the_lists_of_a_step_do_not_depend_on_the_number_of_processes() -> None:
    assert steps_of(0, 1) == steps_of(0, 2) == steps_of(1, 2) == steps_of(3, 4)
    assert [len(lists) for lists in steps_of(0, 2)] == [3, 3, 1]
    assert sorted(n for lists in steps_of(0, 2) for n in lists) == list(range(7))
    assert steps_of(0, 2, epoch=1) != steps_of(0, 2)


def test_widest_first_begins_with_the_widest_margin_and_keeps_the_random_order_of_equal_ones() -> (
    None
):
    """By hand: 9 is in 3 and 0, 5 in 2 and 4, 1 in 1."""
    margins = [0.9, 0.1, 0.5, 0.9, 0.5]
    for epoch in range(4):
        random = epoch_order(5, 0, epoch)
        found = epoch_order(5, 0, epoch, margins)
        assert found[:2] == [i for i in random if i in (0, 3)]
        assert found[2:] == [i for i in random if i in (2, 4)] + [1]


def test_every_process_has_the_same_curriculum() -> None:
    lengths, margins = [10, 20, 30, 40, 50, 60, 70], [0.1, 0.7, 0.3, 0.6, 0.2, 0.5, 0.4]

    def steps(rank: int, size: int, order: str | None) -> list[tuple[int, ...]]:
        chosen = TrainSettings.model_validate(
            {"batch_size": 3, "max_tokens_per_forward": 1000, "order": order}
        )
        sampler = make_sampler(
            each(lengths), chosen, in_one_row=True, rank=rank, size=size, margins=margins
        )
        return [step.step_lists for (step,) in sampler]

    assert steps(0, 1, "widest-first") == [(1, 3, 5), (6, 2, 4), (0,)]
    assert steps(0, 2, "widest-first") == steps(1, 2, "widest-first") == steps(0, 1, "widest-first")
    assert steps(0, 1, None) == steps_of(0, 1)
