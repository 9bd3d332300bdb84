"""What one training example is, for every method: some completions of a prompt, with rewards.

SFT trains on the ground truth, DPO on the best and the worst completion, the others on all.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from perpo_pipeline.boxes import clip_to_frame, format_box
from perpo_pipeline.config import ModelConfig
from perpo_pipeline.errors import ArtifactError, InputError
from perpo_pipeline.model_inputs import encode_row
from perpo_pipeline.train.shared_prefix import CompletionList, ListBatch, pack_lists

if TYPE_CHECKING:
    from perpo_pipeline.models import Vlm

Row = Mapping[str, Any]


@dataclass(frozen=True)
class TrainingList:
    """A prompts row with the completions to train on; all sequences have one entry a completion.

    `ref_logps` are summed log-probabilities under the reference in nats, None where a method needs
    no reference (SFT).
    """

    prompt: Row
    completions: Sequence[Sequence[int]]
    rewards: Sequence[float]
    counts: Sequence[int]
    ref_logps: Sequence[float] | None


@dataclass(frozen=True)
class TrainingBatch:
    """What the loss needs: packed lists, and `(B, N)` rewards, counts, ref_logps (0 at padding)."""

    lists: ListBatch
    rewards: Tensor
    counts: Tensor
    ref_logps: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "TrainingBatch":
        """The batch on `device`."""
        return TrainingBatch(
            self.lists.to(device, non_blocking),
            self.rewards.to(device, non_blocking=non_blocking),
            self.counts.to(device, non_blocking=non_blocking),
            self.ref_logps.to(device, non_blocking=non_blocking),
        )


class ListCollator:
    """Encodes the images and prompts of some lists and packs them for one forward."""

    def __init__(self, vlm: "Vlm", preprocess: str) -> None:
        self.vlm, self.preprocess = vlm, preprocess

    def __call__(self, lists: Sequence[TrainingList]) -> dict[str, TrainingBatch]:
        pairs = [(entry.prompt, entry.completions) for entry in lists]
        packed = pack_rows(self.vlm, pairs, self.preprocess)
        batch = TrainingBatch(
            lists=packed,
            rewards=_pad([entry.rewards for entry in lists]),
            counts=_pad([entry.counts for entry in lists]),
            ref_logps=_pad([entry.ref_logps or [0.0] * len(entry.rewards) for entry in lists]),
        )
        return {"batch": batch}


def pack_rows(
    vlm: "Vlm", pairs: Sequence[tuple[Row, Sequence[Sequence[int]]]], preprocess: str
) -> ListBatch:
    """Encode each prompts row and pack it with its completions (token ids) for one forward."""
    return pack_lists(
        vlm,
        [
            CompletionList(encode_row(vlm, prompt, preprocess), completions)
            for prompt, completions in pairs
        ],
    )


def ranked_lists(
    preferences: Sequence[Row], prompts: Mapping[str, Row], reference: Mapping[str, list[float]]
) -> list[TrainingList]:
    """Whole lists, in the order of the preferences; raises `ArtifactError` for a missing key."""
    return [
        TrainingList(
            prompt=_find(prompts, row["prompt_id"], "prompts"),
            completions=row["completion_token_ids"],
            rewards=row["rewards"],
            counts=row["counts"],
            ref_logps=_find(reference, row["prompt_id"], "reference"),
        )
        for row in preferences
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
    )


def ground_truth_lists(
    preferences: Sequence[Row], prompts: Mapping[str, Row], vlm: "Vlm", model: ModelConfig
) -> list[TrainingList]:
    """The targets of SFT: the truth of the same prompts, in the model's own answer format."""
    lists = []
    for row in preferences:
        prompt = _find(prompts, row["prompt_id"], "prompts")
        answer = ground_truth_text(prompt, model)
        ids = target_token_ids(vlm, prompt["prompt"], answer)
        lists.append(TrainingList(prompt, [ids], [1.0], [1], None))
    return lists


def ground_truth_text(prompt: Row, model: ModelConfig) -> str:
    """The answer that the truth asks for: a box in the model's text format, or the text itself.

    What of the box lies outside the frame is cut off; raises `InputError` if nothing is left.
    """
    if prompt["task"] == "grounding":
        size = (prompt["width"], prompt["height"])
        box = clip_to_frame(tuple(prompt["gt_box"]), frame=model.box_frame, image_size=size)
        if box is None:
            raise InputError(
                f"the box of prompt {prompt['prompt_id']} lies outside the frame "
                f"'{model.box_frame}': no answer can name it",
                fix="use model.preprocess: pad with box_frame full, or leave such prompts out",
            )
        return format_box(box, model.box_format, frame=model.box_frame, image_size=size)
    return str(prompt["gt_text"])


def target_token_ids(vlm: "Vlm", prompt: str, answer: str) -> list[int]:
    """Token ids of an answer as the model would write it, end token included.

    It is tokenised behind the rendered prompt, with a space between where the template leaves none,
    so that the first token is the one that the model itself starts an answer with.
    """
    from perpo_pipeline.models import render_prompt

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


def _pad(rows: Sequence[Sequence[float]]) -> Tensor:
    tensors = [torch.tensor(row, dtype=torch.float32) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
