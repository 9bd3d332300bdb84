"""`perpo score`: every completion is measured against the truth -> the scores artifact.

The core, `score_samples`, is pure; rows keep the order of the samples, part by part.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from perpo_pipeline.artifacts import Recipe, Version, Writer, input_of
from perpo_pipeline.boxes import Box, Size, parse_box
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.rewards.grounding import iou_xyxy
from perpo_pipeline.rewards.text import edit_similarities
from perpo_pipeline.schemas import SCORES
from perpo_pipeline.stage import Run, make

STAGE_VERSION = 1
TRUTH_COLUMNS = ["prompt_id", "task", "width", "height", "gt_text", "gt_box"]
REWARD_OF_TASK = {"grounding": "iou", "ocr": "edit_similarity", "vqa": "edit_similarity"}


def score(run: Run, split: str) -> Version:
    """Write the scores of the run's samples of one split."""
    samples = run.latest("samples", split)
    prompts = run.latest("prompts") if "prompts" in run.inputs else input_of(samples, "prompts")
    model = run.config.model
    settings = {
        **run.config.score.result_settings(),
        "box_format": model.box_format,
        "box_frame": model.box_frame,
    }
    inputs = {"samples": samples, "prompts": prompts}
    recipe = Recipe("scores", split, "score", STAGE_VERSION, settings, inputs)

    def work(writer: Writer) -> Mapping[str, Any]:
        truth = prompts.table(columns=TRUTH_COLUMNS)
        counts: Counter[str] = Counter()
        parts = run.progress(samples.batches(), f"score {split}", len(samples.parts()))
        for index, part in enumerate(parts):
            if not writer.has_part(index):
                writer.write_part(index, score_samples(part, truth, **settings))
            scored = writer.read_part(index)
            counts["rows"] += scored.num_rows
            counts["unparsed"] += scored.num_rows - int(pc.sum(scored["parse_ok"]).as_py())
        return counts

    return make(run, recipe, work, out=run.out)


def score_samples(
    samples: pa.Table, prompts: pa.Table, *, reward: str, box_format: str, box_frame: str
) -> pa.Table:
    """Score completions; the result has SCORES' columns and the rows of `samples`, in order.

    `samples` needs prompt_id, sample_id, completion, and `resized` in the frame of that name;
    `prompts` the TRUTH_COLUMNS; `reward` is `iou`, `edit_similarity`, or `auto` (by the prompt's
    task). Raises `ArtifactError` if a sample's prompt, the truth that the reward needs, or a size
    that the frame needs is missing.
    """
    columns = ["prompt_id", "sample_id", "completion"]
    rows = pl.DataFrame(samples.select(columns + ["resized"] * (box_frame == "resized")))
    truth = pl.DataFrame(prompts.select(TRUTH_COLUMNS))
    joined = rows.join(truth, on="prompt_id", how="left", maintain_order="left")
    _check_prompts(joined)
    by_iou = _uses_iou(joined, reward)
    _check_truth(joined, by_iou, reward)
    rewards = np.zeros(joined.height)
    parse_ok = np.ones(joined.height, dtype=bool)
    boxes: list[list[float] | None] = [None] * joined.height
    where_iou, where_text = np.flatnonzero(by_iou), np.flatnonzero(~by_iou)
    if where_iou.size:
        answers = joined[where_iou]
        found = _parse_boxes(answers, box_format, box_frame)
        for row, box in zip(where_iou, found, strict=True):
            boxes[row] = None if box is None else list(box)
        parse_ok[where_iou] = [box is not None for box in found]
        nowhere = (np.nan,) * 4
        predicted = np.array([box or nowhere for box in found])
        rewards[where_iou] = iou_xyxy(predicted, np.array(answers["gt_box"].to_list()))
    if where_text.size:
        answers = joined[where_text]
        rewards[where_text] = edit_similarities(
            answers["completion"].to_list(), answers["gt_text"].to_list()
        )
    return pa.table(
        [
            samples["prompt_id"],
            samples["sample_id"],
            pa.array(rewards),
            pa.array(parse_ok),
            pa.array(boxes, pa.list_(pa.float64())),
        ],
        schema=SCORES.columns,
    )


def _uses_iou(joined: pl.DataFrame, reward: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if reward == "auto":
        return (joined["task"].replace_strict(REWARD_OF_TASK) == "iou").to_numpy()
    return np.full(joined.height, reward == "iou")


def _check_prompts(joined: pl.DataFrame) -> None:
    lost = joined.filter(pl.col("task").is_null())
    if lost.height:
        raise ArtifactError(
            f"{lost.height} samples belong to no prompt, the first to {lost['prompt_id'][0]}",
            fix="give the prompts that were sampled with --prompts",
        )


def _check_truth(
    joined: pl.DataFrame, by_iou: np.ndarray[Any, np.dtype[np.bool_]], reward: str
) -> None:
    needs_box = pl.Series(by_iou)
    missing = joined.filter(
        (needs_box & joined["gt_box"].is_null()) | (~needs_box & joined["gt_text"].is_null())
    )
    if missing.height:
        raise ArtifactError(
            f"the reward '{reward}' has no truth to measure against in {missing.height} rows, "
            f"the first of prompt {missing['prompt_id'][0]}",
            fix="choose the reward that fits the task, or prepare the data with its truth",
        )


def _parse_boxes(answers: pl.DataFrame, box_format: str, frame: str) -> list[Box | None]:
    sizes = zip(answers["width"], answers["height"], strict=True)
    return [
        parse_box(text, box_format, frame=frame, image_size=size, resized=resized)
        for text, size, resized in zip(
            answers["completion"], sizes, _resized_sizes(answers, frame), strict=True
        )
    ]


def _resized_sizes(answers: pl.DataFrame, frame: str) -> Sequence[Size | None]:
    """For each answer the size of the resized image, where the frame needs it."""
    if frame != "resized":
        return [None] * answers.height
    missing = answers.filter(pl.col("resized").is_null())
    if missing.height:
        raise ArtifactError(
            f"box_frame 'resized' needs the size of the resized image, which {missing.height} "
            f"answers lack, the first of prompt {missing['prompt_id'][0]}",
            fix="rerun `perpo sample`; for a model that cuts images into tiles, which has no such "
            "size, choose another model.box_frame",
        )
    return [(width, height) for width, height in answers["resized"].to_list()]
