"""Predictions: the prompts of an evaluation with the image shown, answered greedily, and scored."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.evaluate.images_shown import with_other_images
from perpo_pipeline.evaluate.older_answers import take_older_answers
from perpo_pipeline.inference.answering import Task, answer_prompts
from perpo_pipeline.inference.backend import BackendSetup
from perpo_pipeline.inference.long_truths import warn_of_long_truths
from perpo_pipeline.inference.part_sampler import PROMPT_COLUMNS, LastSampler, Row
from perpo_pipeline.rewards.builtin import AUTO
from perpo_pipeline.rewards.scoring import TRUTH_COLUMNS, score_samples
from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.schemas import SAMPLES, UNANSWERED
from perpo_pipeline.store.writing import Writer
from perpo_pipeline.vlm.blank import mean_rgb, with_blank_images
from perpo_pipeline.vlm.inputs import IDENTITY_CACHE

SHOWN_COLUMNS = list(dict.fromkeys([*TRUTH_COLUMNS, *PROMPT_COLUMNS]))
MATCHING, OTHER, BLANK = "matching", "other", "blank"


def write_predictions(
    run: Run,
    writer: Writer,
    prompts: Version,
    image: str,
    title: str,
    setup: BackendSetup,
    kept: LastSampler | None = None,
) -> Mapping[str, Any]:
    """Answer the prompts that have no answer yet; returns the counts for the manifest.

    `image`: MATCHING, OTHER or BLANK, see images_shown.py. A prompt that cannot be answered gets
    a row with an empty completion and reward 0, and its reason goes to `errors`. Answers of
    predictions that an older rule made are taken over (older_answers.py). Raises InputError once
    there are more failures than `eval.max_errors`.
    """
    shown = show_images(prompts, image, run.config.eval.condition_prompts, setup)
    task = Task(
        title,
        "answered",
        rows_of=lambda part, rows: prediction_rows(
            part, rows, setup.model, run.config.eval.normalise
        ),
    )
    size = setup.settings.prompts_per_part
    take_older_answers(run, title, writer, shown, size, task.rows_of)
    # A wrong image holds another text.
    long = warn_of_long_truths(run, title, setup, shown, "eval") if image == MATCHING else {}
    # Greedy decoding reads no seed.
    return {**answer_prompts(run, writer, shown, setup, seed=0, task=task, kept=kept), **long}


def show_images(prompts: Version, image: str, limit: int, setup: BackendSetup) -> pa.Table:
    """The prompts with the image that is shown; at most `limit` prompts with a wrong image."""
    table = prompts.table(columns=SHOWN_COLUMNS)
    table = table.append_column("image_prompt_id", table["prompt_id"])
    if image == OTHER:
        shown = with_other_images(table.to_pylist())[:limit]
    elif image == BLANK:
        shown = with_blank_images(table.slice(0, limit).to_pylist(), _mean_rgb(setup))
    else:
        return table
    return pa.Table.from_pylist(shown, schema=table.schema)


def _mean_rgb(setup: BackendSetup) -> tuple[float, float, float]:
    """The mean colour of the model's image processor, each in [0, 1]."""
    from perpo_pipeline.vlm.loading import load_without_weights

    cache = setup.scratch / IDENTITY_CACHE
    return mean_rgb(load_without_weights(setup.resolved, identity_cache=cache))


def prediction_rows(
    part: pa.Table, found: Sequence[Row], model: ModelConfig, normalise: Sequence[str]
) -> list[Row]:
    """PREDICTIONS rows of the prompts of a part, and the ERRORS rows among `found`."""
    failed = [row for row in found if "reason" in row]
    answers = [row for row in found if "reason" not in row]
    scored = score_samples(
        pa.Table.from_pylist(answers, schema=SAMPLES.columns),
        part,
        reward=AUTO,
        reading=model.reading(),
        normalise=normalise,
    ).to_pylist()
    images = dict(
        zip(part["prompt_id"].to_pylist(), part["image_prompt_id"].to_pylist(), strict=True)
    )
    rows = [
        _prediction(answer["prompt_id"], images, answer, measured)
        for answer, measured in zip(answers, scored, strict=True)
    ]
    rows += [_prediction(error["prompt_id"], images, NO_ANSWER, NOTHING) for error in failed]
    places = {prompt_id: place for place, prompt_id in enumerate(images)}
    rows.sort(key=lambda row: places[row["prompt_id"]])
    return [*rows, *failed]


NO_ANSWER: Row = {
    "completion": "",
    "completion_token_ids": [],
    "finish_reason": UNANSWERED,
    "resized": None,
}
NOTHING: Row = {"reward": 0.0, "parse_ok": False, "box": None}


def _prediction(
    prompt_id: str, images: Mapping[str, str], answer: Mapping[str, Any], measured: Row
) -> Row:
    return {
        "prompt_id": prompt_id,
        "image_prompt_id": images[prompt_id],
        **{name: answer[name] for name in NO_ANSWER},
        **{name: measured[name] for name in NOTHING},
    }
