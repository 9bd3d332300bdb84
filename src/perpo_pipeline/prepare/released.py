"""Writes released lists as the samples and scores of a split, from which `perpo filter` continues.

Released answers are only texts. The run's tokenizer makes their token ids and the end token follows
each answer, as for a server that returns no token ids. Seeds are 0, log-probabilities are absent.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perpo_pipeline.answers.pipeline import answer_texts
from perpo_pipeline.answers.reading import read_boxes
from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.config.fingerprints import RELEASED_VERSION, WHERE_SET, reading_settings
from perpo_pipeline.json_files import Row
from perpo_pipeline.prepare.collect import ReleasedList
from perpo_pipeline.rewards.choice import RELEASED
from perpo_pipeline.rewards.grounding import iou_xyxy
from perpo_pipeline.run import Run, make
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.schemas import PROMPTS
from perpo_pipeline.store.writing import Recipe, Writer
from perpo_pipeline.vlm.inputs import IDENTITY_CACHE, faults_of_one_row, find_model, model_notes

if TYPE_CHECKING:
    from perpo_pipeline.vlm.models import Vlm

TOKEN_NOTE = (
    "the file holds no token ids: the answers are tokenised from their text, each with the end "
    "token, as if all of them had stopped by themselves"
)
DOUBTFUL_DIFFERENCE = 0.05  # mean |IoU - released score|; a rounded truth alone makes about 0.01


def write_lists(
    run: Run,
    split: str,
    prompts: Version,
    lists: Sequence[ReleasedList],
    facts: Mapping[str, Any],
    out: Path | None,
) -> tuple[Version, Version]:
    """Write the samples and scores of prompts that were just prepared; `lists` has their order.

    `facts` are the file's facts. `out` gets the folders samples/ and scores/.
    """
    released = {"source": "perpo-json", "file_sha256": facts["file_sha256"]}
    samples = _write_samples(run, split, prompts, lists, released, out and out / "samples")
    scores = _write_scores(run, split, prompts, samples, lists, released, out and out / "scores")
    return samples, scores


def _write_samples(
    run: Run,
    split: str,
    prompts: Version,
    lists: Sequence[ReleasedList],
    released: Mapping[str, Any],
    out: Path | None,
) -> Version:
    model = run.config.model
    resolved, settings = find_model(model, run.scratch, computes_here=False)
    decides = ("model", "preprocess", *WHERE_SET)
    tokenised_by = {name: settings[name] for name in decides if name in settings}
    recipe = Recipe(
        "samples",
        split,
        "prepare",
        RELEASED_VERSION,
        {**released, **tokenised_by},
        {"prompts": prompts},
        notes=model_notes(model),
    )

    def work(writer: Writer) -> Mapping[str, Any]:
        from perpo_pipeline.vlm.loading import load_without_weights

        vlm = load_without_weights(resolved, identity_cache=run.scratch / IDENTITY_CACHE)
        writer.note("token_ids", TOKEN_NOTE)
        run.say(f"prepare {split}: {TOKEN_NOTE}")
        start = 0
        columns = PROMPTS.pick("prompt_id", "place", "width", "height")
        for index, part in enumerate(prompts.batches(columns)):
            some = lists[start : start + part.num_rows]
            start += part.num_rows
            if not writer.has_part(index):
                writer.write_part(
                    index, _sample_rows(vlm, part.to_pylist(), some, model.preprocess)
                )
        return {"prompts": start, "failed": 0}

    return make(run, recipe, work, out=out)


def _sample_rows(
    vlm: "Vlm", prompts: Sequence[Row], lists: Sequence[ReleasedList], preprocess: str
) -> list[Row]:
    from perpo_pipeline.vlm.chat import find_answer_end
    from perpo_pipeline.vlm.prompts import resized_size

    end_id = find_answer_end(vlm)
    rows: list[Row] = []
    for prompt, released in zip(prompts, lists, strict=True):
        width, height = prompt["width"], prompt["height"]
        seen = (max(width, height),) * 2 if preprocess == "pad" else (width, height)
        with faults_of_one_row(prompt):
            resized = resized_size(vlm, seen)
            ids = [vlm.plain.ids(vlm.plain.mark(answer)) for answer in released.answers]
        for sample_id, answer in enumerate(released.answers):
            rows.append(
                {
                    "prompt_id": prompt["prompt_id"],
                    "sample_id": sample_id,
                    "completion": answer,
                    "completion_token_ids": [*ids[sample_id], end_id],
                    "finish_reason": "stop",
                    "seed": 0,
                    "sampler_logprob": None,
                    "resized": resized,
                }
            )
    return rows


def _write_scores(
    run: Run,
    split: str,
    prompts: Version,
    samples: Version,
    lists: Sequence[ReleasedList],
    released: Mapping[str, Any],
    out: Path | None,
) -> Version:
    model = run.config.model
    settings = {
        **released,
        "reward": {RELEASED: 1.0},
        **reading_settings(model),
    }
    recipe = Recipe(
        "scores",
        split,
        "prepare",
        RELEASED_VERSION,
        settings,
        {"samples": samples, "prompts": prompts},
    )

    def work(writer: Writer) -> Mapping[str, Any]:
        start, unparsed = 0, 0
        differences: list[float] = []
        columns = PROMPTS.pick("prompt_id", "width", "height", "gt_box")
        for index, part in enumerate(prompts.batches(columns)):
            some = lists[start : start + part.num_rows]
            start += part.num_rows
            rows, found = _score_rows(part.to_pylist(), some, model.reading())
            unparsed += sum(not row["parse_ok"] for row in rows)
            differences += found
            if not writer.has_part(index):
                writer.write_part(index, rows)
        largest, mean = max(differences), sum(differences) / len(differences)
        note = _about_scores(mean, largest, model.box_format, model.box_frame)
        writer.note("released_scores", note)
        run.say(f"prepare {split}: {note}")
        count = sum(len(one.answers) for one in lists)
        return {
            "rows": count,
            "unparsed": unparsed,
            "largest_difference_from_iou": largest,
            "mean_difference_from_iou": mean,
        }

    return make(run, recipe, work, out=out)


def _about_scores(mean: float, largest: float, box_format: str, box_frame: str) -> str:
    """How the released scores compare with the IoU with the file's truth, as a note."""
    if mean > DOUBTFUL_DIFFERENCE:
        return (
            "WARNING: the released scores do not fit the boxes (mean difference "
            f"{mean:.4f}, largest {largest:.4f}): check model.box_format and box_frame, which are "
            f"{box_format} and {box_frame}; the scores are kept as they are"
        )
    return (
        "the released scores are kept as they are; the truth in the file is rounded, so they "
        f"differ from the IoU with it, by {mean:.4f} in the mean, {largest:.4f} at most"
    )


def _score_rows(
    prompts: Sequence[Row], lists: Sequence[ReleasedList], reading: Reading
) -> tuple[list[Row], list[float]]:
    """SCORES rows with the released rewards, and the difference of our IoU from each."""
    counts = [len(released.answers) for released in lists]
    sizes = np.repeat([(prompt["width"], prompt["height"]) for prompt in prompts], counts, axis=0)
    truths = np.repeat([prompt["gt_box"] for prompt in prompts], counts, axis=0)
    answers = [answer for released in lists for answer in released.answers]
    boxes = read_boxes(
        answer_texts(answers, reading),
        reading.box_format,
        frame=reading.box_frame,
        sizes=sizes,
        which=reading.which,
    )
    is_parsed = ~np.isnan(boxes[:, 0])
    keys = [
        (prompt["prompt_id"], sample_id, score)
        for prompt, released in zip(prompts, lists, strict=True)
        for sample_id, score in enumerate(released.scores)
    ]
    rows = [
        {
            "prompt_id": prompt_id,
            "sample_id": sample_id,
            "reward": score,
            "parse_ok": parsed,
            "box": box if parsed else None,
        }
        for (prompt_id, sample_id, score), parsed, box in zip(
            keys, is_parsed.tolist(), boxes.tolist(), strict=True
        )
    ]
    ious = iou_xyxy(boxes, truths)
    return rows, np.abs(ious - [row["reward"] for row in rows]).tolist()
