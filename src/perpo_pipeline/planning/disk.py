"""Bytes that a run will write, and what is free for them."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perpo_pipeline.planning.amounts import Split
from perpo_pipeline.planning.model import Model
from perpo_pipeline.planning.tokens import Answers
from perpo_pipeline.planning.training import Training
from perpo_pipeline.run import Run
from perpo_pipeline.store.prompt_images import images_of
from perpo_pipeline.train.checkpoints import KEPT_CHECKPOINTS

# Bytes per token of a sampled answer (its text and its ids) and per row. The demo's 48,000 answers
# of 24 tokens take 1.3 MB, because most of them are equal; different texts compress to a third.
ANSWER_BYTES = (1, 8)
ROW_BYTES = (10, 400)
FP32 = 4
MOMENTS = 8  # AdamW's two, in fp32

Bytes = tuple[float, float]


@dataclass(frozen=True)
class Disk:
    """What is written, by name: bytes from low to high; and what is free at `place`."""

    parts: dict[str, Bytes]
    place: Path
    free: int

    @property
    def total(self) -> Bytes:
        return sum(low for low, _ in self.parts.values()), sum(
            high for _, high in self.parts.values()
        )


def expect_disk(
    run: Run,
    model: Model,
    splits: Sequence[Split],
    completions: int | None,
    answers: Answers,
    trainings: Sequence[Training],
) -> Disk:
    """Sizes of the prompts, samples, adapters and checkpoints that are to come."""
    place = _existing(run.config.data_root)
    parts: dict[str, Bytes] = {}
    if model.download:
        parts["weights"] = (model.download, model.download)
    used = [split for split in splits if split.uses and split.prompts is not None]
    prompts = sum(_prompt_bytes(split) * (split.prompts or 0) for split in used)
    if prompts:
        parts["prompts"] = (prompts / 2, prompts)
    if completions:
        low, high = (
            completions * (row + tokens * each)
            for row, tokens, each in zip(ROW_BYTES, answers.tokens, ANSWER_BYTES, strict=True)
        )
        parts["samples and scores"] = (low, high)
    if trainings:
        adapters = sum(t.shape.trained for t in trainings) * FP32
        largest = max(t.shape.trained for t in trainings) * (FP32 + MOMENTS)
        parts["adapters"] = (adapters, adapters)
        parts["checkpoints (removed after each training)"] = (0, KEPT_CHECKPOINTS * largest)
    return Disk(parts, place, shutil.disk_usage(place).free)


def _prompt_bytes(split: Split) -> float:
    """Of one prompt, with its image where that is stored inside."""
    images = [sum(len(one["bytes"] or b"") for one in images_of(row)) for row in split.rows]
    return ROW_BYTES[1] + (sum(images) / len(images) if images else 0)


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
