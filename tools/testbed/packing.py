"""Training rows of the testbed: one image, one shared prefix, several questions with answers.

A row is [prefix | slot 1 | ... | slot K]: the prefix holds the image and the instruction, each slot
one expression and its answer. A slot sees the prefix and itself, and its positions restart where
the prefix ends, so every answer gets the same log-probability as in a separate conversation.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from perpo_pipeline.testbed.scenes import (
    DOMAIN,
    Question,
    ReferringScene,
    referring_scene,
    scene_preset,
)
from tools.testbed.model import EOS, IMAGE, INSTRUCTION, PAD, token_id

IGNORE = -100
SLOT_TOKENS = 25  # the longest expression of the grammar, the role marker, 17 answer tokens
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Targets:
    """What the answers point to: by default the truth; else some wrong objects and shaky boxes."""

    wrong_share: float = 0.0
    jitter: float = 0.0  # standard deviation of each edge, in widths or heights of the box


@dataclass(frozen=True)
class Batch:
    """B packed rows. pixel_values (B, 3, S, S); slot_ids and labels (B, K, L); patches (B, P, 5).

    labels[b, k, t] is the token that follows slot_ids[b, k, t], or IGNORE. patches holds for
    each image patch the class of its object (0: none) and the object's box in hundredths.
    """

    pixel_values: Tensor
    slot_ids: Tensor
    labels: Tensor
    patches: Tensor


class RowWriter:
    """Turns questions into token ids exactly as the chat template would tokenise them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[str, list[int]] = {}
        self.eos_id = token_id(tokenizer, EOS)
        self.pad_id = token_id(tokenizer, PAD)
        text = f"USER: {IMAGE * image_tokens}\n{INSTRUCTION.rstrip()}"
        self.prefix_ids: list[int] = tokenizer(text)["input_ids"]
        self.image_start = self.prefix_ids.index(token_id(tokenizer, IMAGE))

    def question_ids(self, expression: str) -> list[int]:
        """The expression and the marker of the assistant's turn."""
        return self._ids(f" {expression} ASSISTANT: ")

    def answer_ids(self, box_norm: tuple[float, ...]) -> list[int]:
        """`[0.12, 0.34, 0.56, 0.78]` and the end token."""
        return [*self._ids(box_text(box_norm)), self.eos_id]

    def _ids(self, text: str) -> list[int]:
        if text not in self._pieces:
            self._pieces[text] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._pieces[text]


def box_text(box_norm: tuple[float, ...]) -> str:
    """Two decimals per coordinate, full frame, each in [0, 1]."""
    return "[" + ", ".join(f"{value:.2f}" for value in box_norm) + "]"


def picked_box(
    scene: ReferringScene, target: int, distractor: int, targets: Targets, rng: np.random.Generator
) -> tuple[float, ...]:
    """The normalised box of an answer, with ordered edges."""
    wrong = rng.random() < targets.wrong_share
    box = np.array(scene.objects[distractor if wrong else target].box_xyxy_norm)
    extent = np.tile(box[2:] - box[:2], 2)
    box = np.clip(box + targets.jitter * extent * rng.standard_normal(4), 0.0, 1.0)
    low, high = np.minimum(box[:2], box[2:]), np.maximum(box[:2], box[2:])
    return (*low.tolist(), *high.tolist())


def pixels(image: Image.Image) -> NDArray[np.float32]:
    """(3, S, S): as the shipped CLIP processor computes them for an image of the model's size."""
    values = np.asarray(image, dtype=np.float32) / 255
    mean, std = np.array(CLIP_MEAN, np.float32), np.array(CLIP_STD, np.float32)
    return np.ascontiguousarray(((values - mean) / std).transpose(2, 0, 1))


def patch_labels(scene: ReferringScene, preset: str, patch: int) -> NDArray[np.int64]:
    """(patches, 5): class, box in hundredths; the object that fills most of a patch owns it."""
    settings = scene_preset(preset)
    grid = settings.image_size // patch
    edges = np.arange(grid + 1) / grid
    labels = np.zeros((grid, grid, 5), dtype=np.int64)
    best = np.full((grid, grid), 0.2 / grid**2)
    for thing in scene.objects:
        x1, y1, x2, y2 = thing.box_xyxy_norm
        across = np.clip(np.minimum(edges[1:], x2) - np.maximum(edges[:-1], x1), 0, None)
        down = np.clip(np.minimum(edges[1:], y2) - np.maximum(edges[:-1], y1), 0, None)
        area = down[:, None] * across[None, :]
        kind = settings.shapes.index(thing.shape) * len(settings.colours)
        kind += settings.colours.index(thing.colour) + 1
        owned = area > best
        labels[owned] = [kind, *(round(100 * value) for value in thing.box_xyxy_norm)]
        best = np.maximum(best, area)
    return labels.reshape(grid * grid, 5)


class PackedRows:
    """The scenes of a seed as packed rows; row number `index` depends on nothing else."""

    def __init__(
        self,
        writer: RowWriter,
        *,
        preset: str,
        patch: int,
        seed: int,
        slots: int,
        targets: Targets,
        easy_rows: int,
    ) -> None:
        self._writer, self._preset, self._patch, self._seed = writer, preset, patch, seed
        self._slots, self._targets, self._easy_rows = slots, targets, easy_rows

    def batch(self, indices: range) -> Batch:
        """Scenes number `indices`; the first `easy_rows` ask for no relations.

        A row asks each kind of question equally often, as far as its scene has them.
        """
        scenes = [referring_scene(self._seed, index, self._preset) for index in indices]
        filled = [
            self._slots_of(scene, index, easy=index < self._easy_rows)
            for scene, index in zip(scenes, indices, strict=True)
        ]
        return Batch(
            pixel_values=torch.from_numpy(np.stack([pixels(scene.image) for scene in scenes])),
            slot_ids=torch.from_numpy(np.stack([ids for ids, _ in filled])),
            labels=torch.from_numpy(np.stack([labels for _, labels in filled])),
            patches=torch.from_numpy(
                np.stack([patch_labels(scene, self._preset, self._patch) for scene in scenes])
            ),
        )

    def _slots_of(
        self, scene: ReferringScene, index: int, *, easy: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rng = np.random.default_rng([DOMAIN + 1, self._seed, index])
        ids = np.full((self._slots, SLOT_TOKENS), self._writer.pad_id, dtype=np.int64)
        labels = np.full((self._slots, SLOT_TOKENS), IGNORE, dtype=np.int64)
        asked = [q for q in scene.questions if not (easy and q.kind == "relation")]
        drawn = kinds_in_turn([asked[number] for number in rng.permutation(len(asked))])
        for slot, question in enumerate(drawn[: self._slots]):
            box = picked_box(scene, question.target, question.distractor, self._targets, rng)
            opening = self._writer.question_ids(question.expression)
            answer = self._writer.answer_ids(box)
            whole = opening + answer
            ids[slot, : len(whole) - 1] = whole[:-1]
            labels[slot, len(opening) - 1 : len(whole) - 1] = answer
        return ids, labels


def kinds_in_turn(questions: Sequence[Question]) -> list[Question]:
    """The questions in their order, but first one of each kind, then a second of each."""
    before: Counter[str] = Counter()
    ranks: list[int] = []
    for question in questions:
        ranks.append(before[question.kind])
        before[question.kind] += 1
    return [questions[k] for k in sorted(range(len(questions)), key=lambda k: ranks[k])]
