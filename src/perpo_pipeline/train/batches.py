"""From training lists to the tensors of one forward pass: data sets, encoding, packing."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from perpo_pipeline.config.methods import Method
from perpo_pipeline.errors import InputError, PerpoError
from perpo_pipeline.store.places import name_prompt
from perpo_pipeline.train.image_workers import share
from perpo_pipeline.train.lists import TrainingList
from perpo_pipeline.train.loss_inputs import check_values
from perpo_pipeline.train.losses import tie_tolerance
from perpo_pipeline.train.separate_rows import SeparateBatch, separate_lists
from perpo_pipeline.train.shared_prefix import (
    CompletionList,
    PackedBatch,
    RowLengths,
    pack_lists,
)
from perpo_pipeline.train.token_budget import (
    Forward,
    Rows,
    are_in_one_row,
    group_by_tokens,
    rows_of,
)
from perpo_pipeline.vlm.attention import packs_in_one_row
from perpo_pipeline.vlm.inputs import count_row_tokens, encode_row
from perpo_pipeline.vlm.models import base_model
from perpo_pipeline.vlm.tensors import cast_tensors, map_tensors, move, tensors_of

if TYPE_CHECKING:
    from perpo_pipeline.train.plan import RankStep
    from perpo_pipeline.vlm.models import Vlm


@dataclass(frozen=True)
class TrainingBatch:
    """What the loss needs: B lists for one forward, and `(B, N)` rewards, counts, ref_logps.

    `names` are the prompts' names for messages. Within `ties` `(B,)` scores differ by rounding
    alone (`tie_tolerance`). With `negative_ref_logps` `(B, N)`, the forward has 2 B lists: those
    behind a blank image follow the others.
    """

    prompt_ids: Sequence[str]
    names: Sequence[str]
    lists: PackedBatch | SeparateBatch
    rewards: Tensor
    counts: Tensor
    ref_logps: Tensor
    ties: Tensor | None = None
    negative_ref_logps: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """(B, N) true where there is a completion."""
        return self.lists.mask[: len(self.rewards)]

    @property
    def num_tokens(self) -> Tensor:
        """(B, N) tokens of each completion, 0 at padding."""
        return self.lists.num_tokens[: len(self.rewards)]

    def split(self, logps: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the lists, (B, N), and of those behind a blank image, if any."""
        return logps[: len(self.rewards)], logps[len(self.rewards) :]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "TrainingBatch":
        """The batch on `device`."""
        return move(self, device, non_blocking)

    def pin_memory(self) -> "TrainingBatch":
        """The batch in pinned memory; a DataLoader calls this."""
        return map_tensors(self, Tensor.pin_memory)


class ListCollator:
    """Encodes the images and prompts of some lists and packs each forward's lists into a batch.

    Returns `{"batches": [...]}`, which together hold the lists of the call; a batch has at most
    `max_tokens` tokens (a longer list is a batch by itself). Returns `{"failed": error}` for
    `raise_failure` if that fails, because an error that is raised in a worker process would lose
    its advice. Pixels have the dtype in which the model reads them.
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
        self.in_one_row = is_in_one_row(vlm, forward)
        self.dtype: torch.dtype = base_model(vlm.model).dtype

    def for_workers(self) -> "ListCollator":
        """The same without the model's weights, for processes that prepare images."""
        from perpo_pipeline.vlm.loading import without_weights

        found = copy.copy(self)
        found.vlm = without_weights(self.vlm)
        return found

    def __call__(self, lists: Sequence[TrainingList]) -> dict[str, Any]:
        try:
            return {"batches": _shared_by_worker(self._batches(lists))}
        except PerpoError as error:
            return {"failed": error.parts()}

    def collate_step(self, steps: Sequence["Step"]) -> dict[str, Any]:
        """The batches of one planned step and what its loss needs; or its failure."""
        (step,) = steps
        try:
            batches = [self._batch(some, self._encode(some)) for some in step.forwards]
            _shared_by_worker(batches)
        except PerpoError as error:
            return {"failed": error.parts()}
        return {
            "batches": batches,
            "num_dummies": step.num_dummies,
            "total": step.total,
            "names": step.names,
        }

    def _encode(self, lists: Sequence[TrainingList]) -> list[CompletionList]:
        prompts = [encode_row(self.vlm, entry.prompt, self.preprocess) for entry in lists]
        cast = [replace(p, tensors=cast_tensors(p.tensors, self.dtype)) for p in prompts]
        return [CompletionList(p, e.completions) for p, e in zip(cast, lists, strict=True)]

    def _batches(self, lists: Sequence[TrainingList]) -> list[TrainingBatch]:
        encoded = self._encode(lists)
        rows = [
            _rows(entry, one.prompt.num_tokens, self.forward)
            for entry, one in zip(lists, encoded, strict=True)
        ]
        groups = group_by_tokens(rows, self.max_tokens, in_one_row=self.in_one_row)
        return [
            self._batch([lists[i] for i in group], [encoded[i] for i in group]) for group in groups
        ]

    def _batch(
        self, lists: Sequence[TrainingList], encoded: Sequence[CompletionList]
    ) -> TrainingBatch:
        negatives = [entry.negative for entry in lists if entry.negative is not None]
        packed = self._pack([*encoded, *self._encode(negatives)])
        rewards, counts, ref_logps = (
            _pad(rows)
            for rows in (
                [entry.rewards for entry in lists],
                [entry.counts for entry in lists],
                [entry.ref_logps or [0.0] * len(entry.rewards) for entry in lists],
            )
        )
        mask, num_tokens = packed.mask[: len(lists)], packed.num_tokens[: len(lists)]
        check_values(rewards, counts, mask)
        return TrainingBatch(
            prompt_ids=[entry.prompt["prompt_id"] for entry in lists],
            names=[name_prompt(entry.prompt) for entry in lists],
            lists=packed,
            rewards=rewards,
            counts=counts,
            ref_logps=ref_logps,
            ties=tie_tolerance(ref_logps, num_tokens, self.dtype),
            negative_ref_logps=_like(ref_logps, negatives) if negatives else None,
        )

    def _pack(self, lists: Sequence[CompletionList]) -> PackedBatch | SeparateBatch:
        if self.forward == "shared-prefix":
            return pack_lists(
                self.vlm, lists, one_row=self.in_one_row, row_lengths=self.row_lengths
            )
        return separate_lists(self.vlm, lists)


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


def make_step(lists: Sequence[TrainingList], method: Method, planned: "RankStep") -> Step:
    """The lists of a planned step."""
    every = [lists[i] for i in planned.step_lists]
    tokens = sum(len(ids) for entry in every for ids in entry.completions)
    return Step(
        forwards=[[lists[i] for i in forward] for forward in planned.forwards],
        num_dummies=planned.num_dummies,
        total=float(len(every) if method.needs_preferences else tokens),
        names=[name_prompt(entry.prompt) for entry in every],
    )


def list_rows(
    vlm: "Vlm", lists: Sequence[TrainingList], preprocess: str, forward: Forward
) -> list[Rows]:
    """The rows of each list in a forward; counts the prompts that nobody has counted."""
    rows = []
    for entry in lists:
        tokens = entry.prompt_tokens
        if tokens is None:
            tokens = count_row_tokens(vlm, entry.prompt, preprocess)
        rows.append(_rows(entry, tokens, forward))
    return rows


def _rows(entry: TrainingList, prompt_tokens: int, forward: Forward) -> Rows:
    """With those behind a blank image, which has as many tokens as the list's own."""
    own = rows_of(prompt_tokens, [len(ids) for ids in entry.completions], forward)
    return own if entry.negative is None else own + _rows(entry.negative, prompt_tokens, forward)


def raise_failure(collated: Mapping[str, Any]) -> None:
    """Raise the error that the collator returned, if it failed."""
    if "failed" in collated:
        what, where, fix = collated["failed"]
        raise InputError(what, where=where, fix=fix)


def is_in_one_row(vlm: "Vlm", forward: Forward) -> bool:
    """Whether all lists of a forward of this model stand in one row."""
    return are_in_one_row(forward, packs=packs_in_one_row(base_model(vlm.model)))


def _shared_by_worker(batches: list[TrainingBatch]) -> list[TrainingBatch]:
    """In a process that prepares images, the batches in shared memory."""
    if torch.utils.data.get_worker_info() is not None:
        share(tensor for batch in batches for tensor in tensors_of(batch))
    return batches


def _like(ref_logps: Tensor, negatives: Sequence[TrainingList]) -> Tensor:
    """The reference of the completions behind blank images, `(B, N)`: each is a pair's first."""
    found = torch.zeros_like(ref_logps)
    found[:, 0] = torch.tensor([(entry.ref_logps or [0.0])[0] for entry in negatives])
    return found


def _pad(rows: Sequence[Sequence[float]]) -> Tensor:
    tensors = [torch.tensor(row, dtype=torch.float32) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
