"""The tokens of a forward, and lists that share forwards of a bounded number of them."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.planning.training import plan_epoch
from perpo_pipeline.train.separate_rows import separate_lists
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists
from perpo_pipeline.train.token_budget import (
    Forward,
    Rows,
    are_in_one_row,
    forward_tokens,
    group_by_tokens,
    rows_of,
)
from perpo_pipeline.vlm.models import EncodedPrompt

LENGTHS = st.lists(st.integers(1, 300), max_size=40)
ROWS = st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=4).map(tuple), max_size=40)
# A prompt's tokens and those of its answers: SFT with one long target among short ones, and lists.
SFT = [(2900, [3000]), *[(600, [30])] * 6]
LISTS = [(2900, [1000, 900, 950]), (700, [60] * 20), (650, [60, 40])]


def encode(shapes: list[tuple[int, list[int]]]) -> list[CompletionList]:
    return [
        CompletionList(
            EncodedPrompt(
                torch.ones(prompt, dtype=torch.long),
                {},
                torch.arange(prompt)[None],
                prompt,
                (1, 1),
                (1, 1),
                None,
            ),
            [[1] * tokens for tokens in answers],
        )
        for prompt, answers in shapes
    ]


@pytest.mark.parametrize("shapes", [SFT, LISTS])
@pytest.mark.parametrize(
    ("forward", "on_gpu"), [("separate", True), ("separate", False), ("shared-prefix", False)]
)
def test_a_planned_forward_has_as_many_tokens_as_the_tensor_that_is_made_of_it(
    shapes: list[tuple[int, list[int]]], forward: Forward, on_gpu: bool
) -> None:
    """One planned forward of 7 SFT targets had 7 x 5,900 = 41,300 of 10,240 tokens."""
    vlm: Any = SimpleNamespace(
        image_token_ids=(), pad_token_id=0, layers=SimpleNamespace(answer_type=0, ahead=())
    )
    rows = [rows_of(prompt, answers, forward) for prompt, answers in shapes]
    budget = 10_240 if shapes == SFT else 18_000
    settings = TrainSettings(batch_size=len(rows), max_tokens_per_forward=budget)
    epoch = plan_epoch(rows, settings, forward, 1, on_gpu=on_gpu)
    ((step,),) = epoch.steps
    sizes = []
    for planned in step.forwards:
        lists = encode([shapes[i] for i in planned])
        batch = (
            separate_lists(vlm, lists)
            if forward == "separate"
            else pack_lists(vlm, lists, one_row=False)
        )
        sizes.append(batch.input_ids.numel())
        assert sizes[-1] == epoch.tokens(planned)
    assert epoch.largest_forward == max(sizes) <= budget
    assert len(step.forwards) < len(rows)  # and lists that fit share a forward


def test_rows_are_added_up_only_where_they_are_one() -> None:
    """By hand: answers of 3 and 5 after 10 tokens are 13 and 15, padded 2 x 15; packed 10+2+4."""
    assert rows_of(10, [3, 5], "separate") == (13, 15)
    assert rows_of(10, [3, 5], "shared-prefix") == (16,)
    assert forward_tokens([(13, 15), (20,)], in_one_row=False) == 60
    assert forward_tokens([(16,), (20,)], in_one_row=True) == 36
    assert forward_tokens([], in_one_row=False) == 0
    assert are_in_one_row("shared-prefix", packs=True)
    assert not are_in_one_row("shared-prefix", packs=False)
    assert not are_in_one_row("separate", packs=True)


@given(ROWS, st.integers(50, 400), st.booleans())
@example([], 100, True)
def test_every_list_once_and_the_budget_kept(
    lists: list[Rows], max_tokens: int, in_one_row: bool
) -> None:
    groups = group_by_tokens(lists, max_tokens, in_one_row=in_one_row)
    assert sorted(i for group in groups for i in group) == list(range(len(lists)))
    for group in groups:
        sizes = [tokens for i in group for tokens in lists[i]]
        tokens = sum(sizes) if in_one_row else len(sizes) * max(sizes)
        assert tokens <= max_tokens or len(group) == 1


@given(LENGTHS, st.integers(50, 400))
def test_a_list_that_is_too_long_is_alone(lengths: list[int], max_tokens: int) -> None:
    for in_one_row in (True, False):
        groups = group_by_tokens([(n,) for n in lengths], max_tokens, in_one_row=in_one_row)
        assert all(len(g) == 1 for g in groups if max(lengths[i] for i in g) > max_tokens)


@given(LENGTHS, st.integers(50, 400))
def test_no_two_rows_would_fit_into_one(lengths: list[int], max_tokens: int) -> None:
    groups = group_by_tokens([(n,) for n in lengths], max_tokens, in_one_row=True)
    used = sorted(sum(lengths[i] for i in group) for group in groups)
    assert len(used) < 2 or used[0] + used[1] > max_tokens


@given(LENGTHS, st.integers(50, 400))
def test_padded_rows_of_a_group_have_similar_lengths(lengths: list[int], max_tokens: int) -> None:
    """Sorted by length, the groups are consecutive: none overlaps another."""
    groups = group_by_tokens([(n,) for n in lengths], max_tokens, in_one_row=False)
    ranges = [(max(g), min(g)) for g in ([lengths[i] for i in group] for group in groups)]
    assert all(shortest >= longest for (_, shortest), (longest, _) in pairwise(ranges))


def test_padding_counts_where_rows_are_padded() -> None:
    """60 + 30 + 30 fit into 120 in one row; as three rows of 60 they would be 180 tokens."""
    lists = [(30,), (60,), (30,)]
    assert group_by_tokens(lists, 120, in_one_row=True) == [[1, 0, 2]]
    assert group_by_tokens(lists, 120, in_one_row=False) == [[1, 0], [2]]
