"""The image-conditioning test: the same questions with the true, a shuffled and a blank image.

Source: the paper's Figure 1c ("with and without the image").
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import polars as pl

from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.config.evaluations import BLANK_IMAGE, OTHER_IMAGE, Evaluation
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.evaluate.evaluate_model import evaluate
from perpo_pipeline.evaluate.printing import pivot
from perpo_pipeline.evaluate.summarise import ALL, ANSWER_COLUMNS, QUESTION_COLUMNS, summarise
from perpo_pipeline.inference.part_sampler import LastSampler
from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import Version, input_of

Row = dict[str, Any]
IMAGES = {"true": "", "shuffled": OTHER_IMAGE, "blank": BLANK_IMAGE}


def condition(run: Run, model: str, split: str) -> list[Row]:
    """Evaluate one model with each kind of image, and compare them (`conditioning_rows`)."""
    found = {}
    with closing(LastSampler()) as kept:
        for image, suffix in IMAGES.items():
            out = None if run.out is None else run.out / image
            at = replace(run, out=out)
            name = Evaluation(model, split, suffix).name
            found[image] = input_of(evaluate(at, name, kept), "predictions")
    return conditioning_rows(model, split, found)


def conditioning_rows(model: str, split: str, predictions: Mapping[str, Version]) -> list[Row]:
    """Rows with model, split, image, name, value, low, high, n, over the prompts shown with all.

    `predictions` maps the keys of IMAGES to `predictions` artifacts. Raises `ArtifactError` if they
    share no prompt.
    """
    tables = {
        image: pl.DataFrame(version.table(columns=ANSWER_COLUMNS))
        for image, version in predictions.items()
    }
    keys = [set(table["prompt_id"]) for table in tables.values()]
    common = sorted(set.intersection(*keys))
    if not common:
        raise ArtifactError(
            f"the evaluations of {model} on {split} share no prompt",
            where=", ".join(str(v.path) for v in predictions.values()),
            fix="remove them and run: "
            + " and ".join(version.remake() for version in predictions.values()),
        )
    found = []
    for image, table in tables.items():
        prompts = input_of(predictions[image], "prompts").table(columns=QUESTION_COLUMNS)
        shown = table.filter(pl.col("prompt_id").is_in(common))
        settings = predictions[image].manifest["settings"]
        reading, normalise = Reading.recorded(settings), settings.get("normalise", ())
        for row in summarise(shown.to_arrow(), prompts, reading=reading, normalise=normalise):
            if row["dataset"] == ALL:
                measured = {name: row[name] for name in ("name", "value", "low", "high", "n")}
                found.append({"model": model, "split": split, "image": image, **measured})
    return found


def conditioning_table(rows: Sequence[Row]) -> str:
    """The rows as text: a line for each model, split and image, a column for each metric."""
    return pivot(rows, ("model", "split", "image"))
