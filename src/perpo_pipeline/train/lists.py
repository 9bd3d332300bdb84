"""What one training example is, for every method: some completions of a prompt, with rewards.

SFT trains on the ground truth, DPO on the best and the worst completion, the others on all.
"""

import hashlib
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from perpo_pipeline.answers.boxes import Size, clip_to_frame, format_box
from perpo_pipeline.config.methods import Method
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.errors import ArtifactError, ConfigError, InputError, PerpoError
from perpo_pipeline.machine import cores
from perpo_pipeline.train.concatenated import ConcatenatedBatch, concatenate_lists
from perpo_pipeline.train.shared_prefix import (
    CompletionList,
    PackedBatch,
    group_by_tokens,
    pack_lists,
)
from perpo_pipeline.vlm.attention import uses_flex_attention
from perpo_pipeline.vlm.inputs import encode_row
from perpo_pipeline.vlm.models import base_model
from perpo_pipeline.vlm.prompts import resized_size

if TYPE_CHECKING:
    from perpo_pipeline.train.plan import RankStep
    from perpo_pipeline.vlm.models import Vlm

Row = Mapping[str, Any]
Forward = Literal["shared-prefix", "concatenated"]
IMAGE_WORKERS = 4  # where a GPU would wait for images; each holds some batches in shared memory


@dataclass(frozen=True)
class TrainingList:
    """A prompts row with the completions to train on; all sequences have one entry a completion.

    `ref_logps` are summed log-probabilities under the reference in nats, None where a method needs
    no reference (SFT). `prompt_tokens` is the encoded prompt's length, None where nobody has
    counted it.
    """

    prompt: Row
    completions: Sequence[Sequence[int]]
    rewards: Sequence[float]
    counts: Sequence[int]
    ref_logps: Sequence[float] | None = None
    prompt_tokens: int | None = None


@dataclass(frozen=True)
class TrainingBatch:
    """What the loss needs: B lists for one forward, and `(B, N)` rewards, counts, ref_logps."""

    prompt_ids: Sequence[str]
    lists: PackedBatch | ConcatenatedBatch
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
    """The training lists, by number."""

    def __init__(self, lists: Sequence[TrainingList]) -> None:
        self.lists = lists

    def __len__(self) -> int:
        return len(self.lists)

    def __getitem__(self, index: int) -> TrainingList:
        return self.lists[index]


class ListCollator:
    """Encodes the images and prompts of some lists and packs them, a forward's worth at a time.

    Gives `{"batches": [...]}`: together the lists of the call, each batch of at most `max_tokens`
    tokens (a longer list is a batch by itself), or `{"failed": error}` for `raise_failure`: an
    error that is raised in a worker process would come out without its advice.
    """

    def __init__(self, vlm: "Vlm", preprocess: str, forward: Forward, max_tokens: int) -> None:
        self.vlm, self.preprocess = vlm, preprocess
        self.forward, self.max_tokens = forward, max_tokens

    def __call__(self, lists: Sequence[TrainingList]) -> dict[str, Any]:
        try:
            return {"batches": self._batches(lists)}
        except PerpoError as error:
            return {"failed": error.parts()}

    def collate_step(self, steps: Sequence["Step"]) -> dict[str, Any]:
        """The batches of one planned step, its weights with them; or its failure."""
        (step,) = steps
        try:
            batches = [
                _batch(some, pack(self.vlm, self._encode(some), self.forward))
                for some in step.forwards
            ]
        except PerpoError as error:
            return {"failed": error.parts()}
        return {
            "batches": batches,
            "num_dummies": step.num_dummies,
            "total": step.total,
            "prompt_ids": step.prompt_ids,
        }

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
                pack(self.vlm, [encoded[i] for i in group], self.forward),
            )
            for group in groups
        ]


@dataclass(frozen=True)
class Step:
    """What a process does in an optimiser step, fetched: the lists of each of its forwards.

    `total` is what the step's loss is a mean over, summed over all processes: its lists, or its
    target tokens where a method trains on the ground truth. `prompt_ids` covers all processes too.
    """

    forwards: Sequence[Sequence[TrainingList]]
    num_dummies: int
    total: float
    prompt_ids: Sequence[str]


class StepDataset(Dataset[Step]):
    """The training lists, a process's step at a time."""

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
            prompt_ids=[entry.prompt["prompt_id"] for entry in every],
        )


def planned_tokens(entry: TrainingList, prompt_tokens: int, forward: Forward) -> int:
    """Tokens that a list takes of a forward, known before its image is encoded."""
    if forward == "shared-prefix":
        return prompt_tokens + sum(len(ids) - 1 for ids in entry.completions)
    return len(entry.completions) * (prompt_tokens + max(map(len, entry.completions)))


def raise_failure(collated: Mapping[str, Any]) -> None:
    """Raise what the collator could not do."""
    if "failed" in collated:
        what, where, fix = collated["failed"]
        raise InputError(what, where=where, fix=fix)


def ignore_sigterm(_: int) -> None:
    """In an image worker: a scheduler tells every process, and the step still needs its images."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def num_workers(wanted: int | None, device: str) -> int:
    """Processes that prepare images beside the forward passes."""
    if wanted is not None:
        return wanted
    return min(IMAGE_WORKERS, max(1, cores() - 1)) if device == "cuda" else 0


def group_lists(
    vlm: "Vlm", lists: Sequence[CompletionList], forward: Forward, max_tokens: int
) -> list[list[int]]:
    """Indices of the lists that go through one forward together, at most `max_tokens` a forward."""
    if forward == "shared-prefix":
        lengths = [entry.num_packed_tokens for entry in lists]
        return group_by_tokens(
            lengths, max_tokens, in_one_row=uses_flex_attention(base_model(vlm.model))
        )
    lengths = [
        len(entry.completions) * (entry.prompt.num_tokens + max(map(len, entry.completions)))
        for entry in lists
    ]
    return group_by_tokens(lengths, max_tokens, in_one_row=True)


def pack(
    vlm: "Vlm", lists: Sequence[CompletionList], forward: Forward
) -> PackedBatch | ConcatenatedBatch:
    """The lists for one forward."""
    if forward == "shared-prefix":
        return pack_lists(vlm, lists)
    return concatenate_lists(vlm, lists)


def ranked_lists(preferences: Sequence[Row], prompts: Mapping[str, Row]) -> list[TrainingList]:
    """Whole lists, in the order of the preferences; raises `ArtifactError` for a missing prompt."""
    return [
        TrainingList(
            prompt=_find(prompts, row["prompt_id"], "prompts"),
            completions=row["completion_token_ids"],
            rewards=row["rewards"],
            counts=row["counts"],
        )
        for row in preferences
    ]


def with_reference(
    lists: Sequence[TrainingList], reference: Mapping[str, Sequence[float]]
) -> list[TrainingList]:
    """The lists with their reference log-probabilities; raises `ArtifactError` where one lacks."""
    return [
        replace(entry, ref_logps=_find(reference, entry.prompt["prompt_id"], "reference"))
        for entry in lists
    ]


def best_against_worst(entry: TrainingList) -> TrainingList:
    """The pair of DPO: one best and one worst completion (largest reward gap).

    Among equals the one with the smallest hash of its token ids: a choice that does not depend on
    the order of the list.
    """
    best, worst = max(entry.rewards), min(entry.rewards)
    chosen = [_pick(entry, best), _pick(entry, worst)]
    return TrainingList(
        prompt=entry.prompt,
        completions=[entry.completions[i] for i in chosen],
        rewards=[entry.rewards[i] for i in chosen],
        counts=[1, 1],
        ref_logps=None if entry.ref_logps is None else [entry.ref_logps[i] for i in chosen],
        prompt_tokens=entry.prompt_tokens,
    )


def ground_truth_list(entry: TrainingList, vlm: "Vlm", model: ModelConfig) -> TrainingList:
    """The target of SFT: the truth of the same prompt, in the model's own answer format."""
    needs_size = model.box_frame == "resized" and entry.prompt["task"] == "grounding"
    resized = _resized(entry.prompt, vlm) if needs_size else None
    answer = ground_truth_text(entry.prompt, model, resized)
    ids = target_token_ids(vlm, entry.prompt["prompt"], answer)
    return TrainingList(entry.prompt, [ids], [1.0], [1])


def ground_truth_text(prompt: Row, model: ModelConfig, resized: Size | None = None) -> str:
    """The answer that the truth asks for: boxes in the model's text format, or the text itself.

    `resized` is the size that the frame of that name needs. What of the box lies outside the frame
    is cut off; raises `InputError` if nothing is left.
    """
    if prompt["task"] == "grounding":
        return ", ".join(_written_box(box, prompt, model, resized) for box in _true_boxes(prompt))
    return str(prompt["gt_text"])


def _true_boxes(prompt: Row) -> list[Sequence[float]]:
    if prompt["gt_box"] is None and prompt["gt_boxes"] is None:
        raise InputError(
            f"prompt {prompt['prompt_id']} has no true box to train on, only a polygon",
            fix="leave sft out of train.methods, or prepare the data with gt_box",
        )
    return prompt["gt_boxes"] if prompt["gt_box"] is None else [prompt["gt_box"]]


def _written_box(
    true: Sequence[float], prompt: Row, model: ModelConfig, resized: Size | None
) -> str:
    """A true box in the model's text format; raises `InputError` if it lies outside the frame."""
    size = (prompt["width"], prompt["height"])
    frame: dict[str, Any] = {"frame": model.box_frame, "image_size": size, "resized": resized}
    x1, y1, x2, y2 = true
    box = clip_to_frame((x1, y1, x2, y2), **frame)
    if box is None:
        raise InputError(
            f"the box of prompt {prompt['prompt_id']} lies outside the frame "
            f"'{model.box_frame}': no answer can name it",
            fix="use model.preprocess: pad with box_frame full, or leave such prompts out",
        )
    return format_box(box, model.box_format, **frame)


def _resized(prompt: Row, vlm: "Vlm") -> Size:
    """The size of the resized image (never padded: `ModelConfig` refuses both together)."""
    size = resized_size(vlm, (prompt["width"], prompt["height"]))
    if size is None:
        raise ConfigError(
            f"box_frame 'resized' needs images resized as a whole, and this '{vlm.family.name}' "
            f"model sees that of prompt {prompt['prompt_id']} in another way",
            fix="choose another model.box_frame",
        )
    return size


def target_token_ids(vlm: "Vlm", prompt: str, answer: str) -> list[int]:
    """Token ids of an answer as the model would write it, end token included.

    It is tokenised behind the rendered prompt, with a space between where the template leaves none,
    so that the first token is the one that the model itself starts an answer with.
    """
    from perpo_pipeline.vlm.prompts import render_prompt

    rendered = render_prompt(vlm, prompt)
    separator = "" if rendered[-1:].isspace() else " "

    def tokens(text: str) -> list[int]:
        return list(vlm.tokenizer(text, add_special_tokens=False)["input_ids"])

    before, whole = tokens(rendered), tokens(rendered + separator + answer)
    follows = whole[: len(before)] == before
    ids = whole[len(before) :] if follows else tokens(answer)
    return [*ids, vlm.eos_token_ids[0]]


def _pick(entry: TrainingList, reward: float) -> int:
    ties = [i for i, r in enumerate(entry.rewards) if r == reward]
    return min(ties, key=lambda i: _token_hash(entry.completions[i]))


def _token_hash(token_ids: Sequence[int]) -> str:
    return hashlib.sha256(",".join(map(str, token_ids)).encode()).hexdigest()


def _find(table: Mapping[str, Any], prompt_id: str, name: str) -> Any:
    try:
        return table[prompt_id]
    except KeyError:
        raise ArtifactError(
            f"prompt {prompt_id} is in the preferences, not in the {name}",
            fix="rerun the stages from `perpo sample` on",
        ) from None


def _batch(lists: Sequence[TrainingList], packed: PackedBatch | ConcatenatedBatch) -> TrainingBatch:
    return TrainingBatch(
        prompt_ids=[entry.prompt["prompt_id"] for entry in lists],
        lists=packed,
        rewards=_pad([entry.rewards for entry in lists]),
        counts=_pad([entry.counts for entry in lists]),
        ref_logps=_pad([entry.ref_logps or [0.0] * len(entry.rewards) for entry in lists]),
    )


def _pad(rows: Sequence[Sequence[float]]) -> Tensor:
    tensors = [torch.tensor(row, dtype=torch.float32) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
