"""Which process puts which lists through which forward; known before a step begins.

The lists of a step and their order over an epoch do not depend on the number of processes. Within a
step the lists are distributed so that processes have about the same number of tokens and make the
same number of forwards, because under ZeRO-3 all processes take part in each forward.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.train.token_budget import Rows, forward_tokens, group_by_tokens


@dataclass(frozen=True)
class RankStep:
    """One process's share of an optimiser step; lists are given by their number in the data set.

    `forwards` holds the lists of each forward; the last `num_dummies` are dummies with weight 0
    that keep the ranks in step. `step_lists` are the lists of all processes.
    """

    forwards: tuple[tuple[int, ...], ...]
    num_dummies: int
    step_lists: tuple[int, ...]


def share_out(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices of `lengths` for each of `size` processes, with about the same tokens for each.

    The longest list goes first, each to the process with the fewest tokens so far (Graham's LPT
    rule: at most 4/3 of the best possible maximum). Ties go to the earlier list and the lower rank.
    """
    shares: list[list[int]] = [[] for _ in range(size)]
    loads = [0] * size
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rank = loads.index(min(loads))
        shares[rank].append(index)
        loads[rank] += lengths[index]
    return [sorted(share) for share in shares]


def plan_step(
    numbers: Sequence[int], rows: Sequence[Rows], size: int, max_tokens: int, *, in_one_row: bool
) -> list[RankStep]:
    """The step of each process over the lists `numbers`, which have these `rows`.

    A forward has at most `max_tokens` tokens (see `group_by_tokens`). A process with fewer forwards
    than another splits its forwards; if it has too few lists for that, it repeats the step's
    shortest list with weight 0.
    """
    lengths = [forward_tokens([own], in_one_row=in_one_row) for own in rows]
    planned = []
    for share in share_out(lengths, size):
        some = [rows[i] for i in share]
        groups = group_by_tokens(some, max_tokens, in_one_row=in_one_row)
        planned.append([[share[i] for i in group] for group in groups])
    most = max(map(len, planned))
    shortest = min(range(len(lengths)), key=lambda i: (lengths[i], i))
    steps = []
    for groups in planned:
        groups = _split(groups, most)
        missing = most - len(groups)
        groups += [[shortest]] * missing
        forwards = tuple(tuple(numbers[i] for i in group) for group in groups)
        steps.append(RankStep(forwards, missing, tuple(numbers)))
    return steps


def epoch_order(
    num_lists: int, seed: int, epoch: int, margins: Sequence[float] | None = None
) -> list[int]:
    """The order of the lists in an epoch; it does not depend on the number of processes.

    It is random, or by `margins` from the widest to the narrowest, where equal ones keep the random
    order. Source of the curriculum: Pattnaik et al. 2024, arXiv:2403.07230, which orders pairs by
    the difference of their ratings, the largest first.
    """
    generator = torch.Generator().manual_seed(seed + epoch)
    order: list[int] = torch.randperm(num_lists, generator=generator).tolist()
    if margins is not None:
        order.sort(key=lambda i: -margins[i])
    return order


class StepSampler(Sampler[list[RankStep]]):
    """Yields one process's steps of an epoch; every process plans the same steps for all."""

    def __init__(
        self,
        rows: Sequence[Rows],
        batch_size: int,
        seed: int,
        max_tokens: int,
        *,
        in_one_row: bool,
        rank: int = 0,
        size: int = 1,
        margins: Sequence[float] | None = None,
    ) -> None:
        self.margins = margins
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.max_tokens, self.in_one_row = max_tokens, in_one_row
        self.rank, self.size, self.epoch = rank, size, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, which decides the order of the lists; the Trainer calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[list[RankStep]]:
        for steps in self.steps_of_all_ranks():
            yield [steps[self.rank]]

    def steps_of_all_ranks(self) -> Iterator[list[RankStep]]:
        """For each optimiser step of the epoch, the step of every process."""
        order = epoch_order(len(self.rows), self.seed, self.epoch, self.margins)
        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size]
            yield plan_step(
                numbers,
                [self.rows[i] for i in numbers],
                self.size,
                self.max_tokens,
                in_one_row=self.in_one_row,
            )


def make_sampler(
    rows: Sequence[Rows],
    settings: TrainSettings,
    *,
    in_one_row: bool,
    rank: int,
    size: int,
    margins: Sequence[float] | None = None,
) -> StepSampler:
    """The plan of a training in which the lists have these `rows`.

    `margins` are those of the lists, for `settings.order`; without them the order is random, as in
    a plan for lists that do not exist yet.
    """
    return StepSampler(
        rows,
        settings.batch_size,
        settings.seed,
        settings.max_tokens_per_forward,
        in_one_row=in_one_row,
        rank=rank,
        size=size,
        margins=margins if settings.order == "widest-first" else None,
    )


def _split(groups: list[list[int]], wanted: int) -> list[list[int]]:
    """Halve the group with the most lists until there are `wanted` groups, if that is possible."""
    groups = list(groups)
    while 0 < len(groups) < wanted and max(map(len, groups)) > 1:
        at = max(range(len(groups)), key=lambda i: len(groups[i]))
        groups[at : at + 1] = [groups[at][0::2], groups[at][1::2]]
    return groups
