"""From training lists to the tensors of one forward pass: data sets, encoding, packing."""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from perpo_pipeline.config.methods import Method
from perpo_pipeline.errors import InputError, PerpoError
from perpo_pipeline.machine import cores
from perpo_pipeline.store.places import name_prompt
from perpo_pipeline.train.lists import TrainingList
from perpo_pipeline.train.losses import check_values
from perpo_pipeline.train.separate_rows import SeparateBatch, separate_lists
from perpo_pipeline.train.shared_prefix import (
    CompletionList,
    PackedBatch,
    RowLengths,
    group_by_tokens,
    pack_lists,
)
from perpo_pipeline.vlm.attention import uses_flex_attention
from perpo_pipeline.vlm.inputs import count_row_tokens, encode_row
from perpo_pipeline.vlm.models import base_model

if TYPE_CHECKING:
    from perpo_pipeline.train.plan import RankStep
    from perpo_pipeline.vlm.models import Vlm

Forward = Literal["shared-prefix", "separate"]
IMAGE_WORKERS = 4  # where a GPU would wait for images; each holds some batches in shared memory


@dataclass(frozen=True)
class TrainingBatch:
    """What the loss needs: B lists for one forward, and `(B, N)` rewards, counts, ref_logps.

    `names` are the prompts' names for messages.
    """

    prompt_ids: Sequence[str]
    names: Sequence[str]
    lists: PackedBatch | SeparateBatch
    rewards: Tensor
    counts: Tensor
    ref_logps: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "TrainingBatch":
        """The batch on `device`."""
        return replace(
            self,
            lists=self.lists.to(device, non_blocking),
            rewards=self.rewards.to(device, non_blocking=non_blocking),
            counts=self.counts.to(device, non_blocking=non_blocking),
            ref_logps=self.ref_logps.to(device, non_blocking=non_blocking),
        )


class ListDataset(Dataset[TrainingList]):
    """The training lists by number."""

    def __init__(self, lists: Sequence[TrainingList]) -> None:
        self.lists = lists

    def __len__(self) -> int:
        return len(self.lists)

    def __getitem__(self, index: int) -> TrainingList:
        return self.lists[index]


class ListCollator:
    """Encodes the images and prompts of some lists and packs each forward's lists into a batch.

    Returns `{"batches": [...]}`, which together hold the lists of the call; a batch has at most
    `max_tokens` tokens (a longer list is a batch by itself). Returns `{"failed": error}` for
    `raise_failure` if that fails, because an error that is raised in a worker process would lose
    its advice.
    """

    def __init__(
        self,
        vlm: "Vlm",
        preprocess: str,
        forward: Forward,
        max_tokens: int,
        row_lengths: RowLengths = "any",
    ) -> None:
        self.vlm, self.preprocess = vlm, preprocess
        self.forward, self.max_tokens, self.row_lengths = forward, max_tokens, row_lengths

    def __call__(self, lists: Sequence[TrainingList]) -> dict[str, Any]:
        try:
            return {"batches": self._batches(lists)}
        except PerpoError as error:
            return {"failed": error.parts()}

    def collate_step(self, steps: Sequence["Step"]) -> dict[str, Any]:
        """The batches of one planned step and what its loss needs; or its failure."""
        (step,) = steps
        try:
            batches = [_batch(some, self._pack(self._encode(some))) for some in step.forwards]
        except PerpoError as error:
            return {"failed": error.parts()}
        return {
            "batches": batches,
            "num_dummies": step.num_dummies,
            "total": step.total,
            "names": step.names,
        }

    def _pack(self, lists: Sequence[CompletionList]) -> PackedBatch | SeparateBatch:
        return pack(self.vlm, lists, self.forward, self.row_lengths)

    def _encode(self, lists: Sequence[TrainingList]) -> list[CompletionList]:
        return [
            CompletionList(encode_row(self.vlm, entry.prompt, self.preprocess), entry.completions)
            for entry in lists
        ]

    def _batches(self, lists: Sequence[TrainingList]) -> list[TrainingBatch]:
        encoded = self._encode(lists)
        groups = group_lists(self.vlm, encoded, self.forward, self.max_tokens)
        return [
            _batch(
                [lists[i] for i in group],
                self._pack([encoded[i] for i in group]),
            )
            for group in groups
        ]


@dataclass(frozen=True)
class Step:
    """One process's share of an optimiser step: the lists of each of its forwards.

    The last `num_dummies` forwards have weight 0. `total` is the number that the step's loss is
    divided by, over all processes: the lists, or the target tokens if the method trains on the
    ground truth. `names` of prompts, for messages, cover all processes too.
    """

    forwards: Sequence[Sequence[TrainingList]]
    num_dummies: int
    total: float
    names: Sequence[str]


class StepDataset(Dataset[Step]):
    """One process's steps; a planned step is the key."""

    def __init__(self, lists: Sequence[TrainingList], method: Method) -> None:
        self.lists, self.method = lists, method

    def __len__(self) -> int:
        return len(self.lists)

    def __getitem__(self, step: "RankStep") -> Step:
        every = [self.lists[i] for i in step.step_lists]
        tokens = sum(len(ids) for entry in every for ids in entry.completions)
        return Step(
            forwards=[[self.lists[i] for i in forward] for forward in step.forwards],
            num_dummies=step.num_dummies,
            total=float(len(every) if self.method.needs_preferences else tokens),
            names=[name_prompt(entry.prompt) for entry in every],
        )


def forward_tokens(
    completions: Sequence[Sequence[int]], prompt_tokens: int, forward: Forward
) -> int:
    """Tokens that a list takes up in a forward; known before its image is encoded."""
    if forward == "shared-prefix":
        return prompt_tokens + sum(len(ids) - 1 for ids in completions)
    return len(completions) * (prompt_tokens + max(map(len, completions)))


def list_lengths(
    vlm: "Vlm", lists: Sequence[TrainingList], preprocess: str, forward: Forward
) -> list[int]:
    """Tokens that each list takes up in a forward; counts the prompts that nobody has counted."""
    lengths = []
    for entry in lists:
        tokens = entry.prompt_tokens
        if tokens is None:
            tokens = count_row_tokens(vlm, entry.prompt, preprocess)
        lengths.append(forward_tokens(entry.completions, tokens, forward))
    return lengths


def raise_failure(collated: Mapping[str, Any]) -> None:
    """Raise the error that the collator returned, if it failed."""
    if "failed" in collated:
        what, where, fix = collated["failed"]
        raise InputError(what, where=where, fix=fix)


def ignore_signals(_: int) -> None:
    """Keep an image worker alive: a scheduler or a terminal signals every process, but the current
    step still needs its images."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def num_workers(wanted: int | None, device: str) -> int:
    """How many processes prepare images during the forward passes."""
    if wanted is not None:
        return wanted
    return min(IMAGE_WORKERS, max(1, cores() - 1)) if device == "cuda" else 0


def group_lists(
    vlm: "Vlm", lists: Sequence[CompletionList], forward: Forward, max_tokens: int
) -> list[list[int]]:
    """Indices of the lists of each forward, with at most `max_tokens` tokens per forward."""
    lengths = [
        forward_tokens(entry.completions, entry.prompt.num_tokens, forward) for entry in lists
    ]
    return group_by_tokens(lengths, max_tokens, in_one_row=is_in_one_row(vlm, forward))


def is_in_one_row(vlm: "Vlm", forward: Forward) -> bool:
    """Whether the tokens of all lists of a forward add up: in one row, or in full rows.

    Otherwise each list has a row of its own, padded to the longest.
    """
    return forward == "separate" or uses_flex_attention(base_model(vlm.model))


def pack(
    vlm: "Vlm",
    lists: Sequence[CompletionList],
    forward: Forward,
    row_lengths: RowLengths = "any",
) -> PackedBatch | SeparateBatch:
    """Pack the lists for one forward."""
    if forward == "shared-prefix":
        return pack_lists(vlm, lists, row_lengths=row_lengths)
    return separate_lists(vlm, lists)


def _batch(lists: Sequence[TrainingList], packed: PackedBatch | SeparateBatch) -> TrainingBatch:
    rewards, counts = (
        _pad(rows) for rows in ([e.rewards for e in lists], [e.counts for e in lists])
    )
    check_values(rewards, counts, packed.mask)
    return TrainingBatch(
        prompt_ids=[entry.prompt["prompt_id"] for entry in lists],
        names=[name_prompt(entry.prompt) for entry in lists],
        lists=packed,
        rewards=rewards,
        counts=counts,
        ref_logps=_pad([entry.ref_logps or [0.0] * len(entry.rewards) for entry in lists]),
    )


def _pad(rows: Sequence[Sequence[float]]) -> Tensor:
    tensors = [torch.tensor(row, dtype=torch.float32) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
