"""Tokens of prompts and answers: counted on a sample of prompts, without the model's weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from perpo_pipeline.errors import InputError
from perpo_pipeline.planning.amounts import Row, finished
from perpo_pipeline.planning.model import Model
from perpo_pipeline.run import Run
from perpo_pipeline.train.lists import TrainingList, ground_truth_list
from perpo_pipeline.vlm.chat import answer_turn
from perpo_pipeline.vlm.inputs import count_row_parts

if TYPE_CHECKING:
    from perpo_pipeline.vlm.models import Vlm


@dataclass(frozen=True)
class PromptTokens:
    """Tokens of some prompts: of the image, of the text, and of the truth written as an answer."""

    image: Sequence[int]
    text: Sequence[int]
    truth: Sequence[int]
    how: str

    @property
    def whole(self) -> list[int]:
        """Tokens of image and text together."""
        return [i + t for i, t in zip(self.image, self.text, strict=True)]


@dataclass(frozen=True)
class Answers:
    """Tokens of a sampled answer on average, and the distinct answers of a list: (low, high)."""

    tokens: tuple[float, float]
    distinct: tuple[float, float]
    how: str

    def list_tokens(self) -> tuple[float, float]:
        """Tokens of all distinct answers of a list."""
        return self.tokens[0] * self.distinct[0], self.tokens[1] * self.distinct[1]


def count_tokens(run: Run, model: Model, rows: Sequence[Row]) -> PromptTokens | None:
    """Count the tokens of `rows` with the processor, or take published figures; None: unknown."""
    if model.vlm is None or not rows:
        return _published_tokens(model)
    vlm, preprocess = model.vlm, run.config.model.preprocess
    image, text = zip(*(count_row_parts(vlm, row, preprocess) for row in rows), strict=True)
    return PromptTokens(image, text, _truths(run, vlm, rows), f"counted on {len(rows)} prompts")


def _published_tokens(model: Model) -> PromptTokens | None:
    record = model.record
    if "image_tokens" not in record:
        return None
    truth = [record["box_tokens"]] if "box_tokens" in record else []
    return PromptTokens(
        [record["image_tokens"]],
        [record["text_tokens"]],
        truth,
        f"published, for an image of 640 x 480, not counted ({record['source']})",
    )


def _truths(run: Run, vlm: "Vlm", rows: Sequence[Row]) -> list[int]:
    """Tokens of the truths that can be written as an answer."""
    counts = []
    try:
        turn = answer_turn(vlm)
    except InputError:
        return []
    for row in rows:
        try:
            entry = ground_truth_list(TrainingList(row, [], [], []), vlm, run.config.model, turn)
        except InputError:  # a polygon, or a box outside the frame
            continue
        counts.append(len(entry.completions[0]))
    return counts


def expect_answers(run: Run, tokens: PromptTokens | None) -> Answers:
    """The answers that were sampled, or else bounds: from the truth's length to the longest."""
    config, kept = run.config.sample, run.config.filter.list_size
    most = config.num_samples if kept is None else min(kept, config.num_samples)
    samples = finished(run, "samples", config.split)
    if samples is not None:
        part = samples.part(0, ["prompt_id", "completion_token_ids"])
        completions = part.column("completion_token_ids").to_pylist()
        return measured_answers(completions, config.num_samples, kept)
    if tokens is not None and len(tokens.truth):
        low = min(median(tokens.truth), config.longest())
        return Answers(
            (low, config.longest()),
            (min(2, most), most),
            "bounds: from the length of the truth to sample.max_new_tokens",
        )
    return Answers((1, config.longest()), (min(2, most), most), "bounds: max_new_tokens")


def measured_answers(
    completions: Sequence[Sequence[int]], num_samples: int, kept: int | None = None
) -> Answers:
    """The mean length of completions, whole lists of `num_samples`, and how many are distinct.

    `kept` is `filter.list_size`: so many of each list are looked at.
    """
    mean = float(np.mean([len(ids) for ids in completions]))
    starts = range(0, len(completions), num_samples)
    lists = [completions[i : i + num_samples][:kept] for i in starts]
    distinct = float(np.mean([len({tuple(ids) for ids in one}) for one in lists]))
    return Answers((mean, mean), (distinct, distinct), f"of {len(completions):,} sampled answers")
