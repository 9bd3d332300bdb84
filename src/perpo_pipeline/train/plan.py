"""Which lists go through which forward of which process, known before a step begins.

The lists of a step, and their order over an epoch, are those of one process. Within a step they
are shared out so that processes have about the same tokens, and all make the same number of
forwards: under ZeRO-3 each forward is a meeting of all of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from perpo_pipeline.train.shared_prefix import group_by_tokens


@dataclass(frozen=True)
class RankStep:
    """One process's share of an optimiser step; lists by their number in the data set.

    `forwards` holds the lists of each forward; the last `num_dummies` of them only keep the others
    company and weigh nothing. `step_lists` are the lists of all processes.
    """

    forwards: tuple[tuple[int, ...], ...]
    num_dummies: int
    step_lists: tuple[int, ...]


def share_out(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices of `lengths` for each of `size` processes, about the same tokens for each.

    The longest first, each to the process with the least so far (Graham's LPT rule: at most 4/3 of
    the best possible maximum). Ties go to the earlier list and the lower rank.
    """
    shares: list[list[int]] = [[] for _ in range(size)]
    loads = [0] * size
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rank = loads.index(min(loads))
        shares[rank].append(index)
        loads[rank] += lengths[index]
    return [sorted(share) for share in shares]


def plan_step(
    numbers: Sequence[int], lengths: Sequence[int], size: int, max_tokens: int, *, in_one_row: bool
) -> list[RankStep]:
    """The step of each process over the lists `numbers`, whose tokens are `lengths`.

    A forward has at most `max_tokens` tokens (see `group_by_tokens`). A process with fewer forwards
    than another splits its own; where it has too few lists for that, it repeats the step's shortest
    list with weight 0.
    """
    planned = []
    for share in share_out(lengths, size):
        some = [lengths[i] for i in share]
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


def epoch_order(num_lists: int, seed: int, epoch: int) -> list[int]:
    """The order of the lists in an epoch, the same for any number of processes."""
    generator = torch.Generator().manual_seed(seed + epoch)
    order: list[int] = torch.randperm(num_lists, generator=generator).tolist()
    return order


class StepSampler(Sampler[list[RankStep]]):
    """Gives a process its steps of an epoch, one at a time; every process plans all alike."""

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        max_tokens: int,
        *,
        in_one_row: bool,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.max_tokens, self.in_one_row = max_tokens, in_one_row
        self.rank, self.size, self.epoch = rank, size, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order counts; the Trainer calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[RankStep]]:
        order = epoch_order(len(self.lengths), self.seed, self.epoch)
        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size]
            steps = plan_step(
                numbers,
                [self.lengths[i] for i in numbers],
                self.size,
                self.max_tokens,
                in_one_row=self.in_one_row,
            )
            yield [steps[self.rank]]


def _split(groups: list[list[int]], wanted: int) -> list[list[int]]:
    """The groups, the fullest halved again and again until there are `wanted` (if that can be)."""
    groups = list(groups)
    while 0 < len(groups) < wanted and max(map(len, groups)) > 1:
        at = max(range(len(groups)), key=lambda i: len(groups[i]))
        groups[at : at + 1] = [groups[at][0::2], groups[at][1::2]]
    return groups
