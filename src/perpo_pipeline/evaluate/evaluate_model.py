"""`perpo eval`: prompts and a model (with or without an adapter) -> predictions and metrics.

Decoding is greedy. The evaluation `<model>@<split>` shows each question with its own image,
`<model>-other-image@<split>` with the image of another prompt, `<model>-blank-image@<split>` with a
blank one: answers that are still right were guessed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from perpo_pipeline.config.evaluations import BASE, BLANK_IMAGE, OTHER_IMAGE, read_evaluation
from perpo_pipeline.config.fingerprints import counted_settings, reading_settings
from perpo_pipeline.evaluate.images_shown import (
    refuse_trained_images,
    with_blank_images,
    with_other_images,
)
from perpo_pipeline.evaluate.metrics import measured_metrics, missing_metrics, tasks_of
from perpo_pipeline.evaluate.summarise import ANSWER_COLUMNS, QUESTION_COLUMNS, summarise
from perpo_pipeline.rewards.builtin import AUTO
from perpo_pipeline.rewards.scoring import TRUTH_COLUMNS, score_samples
from perpo_pipeline.run import Run, make
from perpo_pipeline.store.artifacts import Version, input_of, open_version
from perpo_pipeline.store.schemas import PROMPTS, SIZE
from perpo_pipeline.store.writing import Recipe, Writer
from perpo_pipeline.vlm.families import unusual_boxes
from perpo_pipeline.vlm.inputs import encode_row, find_model, model_notes, open_model

if TYPE_CHECKING:
    from perpo_pipeline.vlm.models import Vlm

STAGE_VERSION = 4
PROMPT_COLUMNS = [*TRUTH_COLUMNS, *PROMPTS.pick("place", "image", "image_sha256", "prompt")]
SHOWN = {OTHER_IMAGE: "other", BLANK_IMAGE: "blank"}

Row = dict[str, Any]


def evaluate(run: Run, evaluation: str) -> Version:
    """Predict and measure one evaluation, by its name (config/evaluations.py).

    Returns the metrics. Raises `ArtifactError` if the adapter was trained on images of the prompts.
    """
    predictions = _predict(run, evaluation)
    prompts = input_of(predictions, "prompts")
    truth = prompts.table(columns=QUESTION_COLUMNS)
    tasks, reading = tasks_of(truth), run.config.model.reading()
    settings = {"metrics": [metric.name for metric in measured_metrics(tasks)]}
    recipe = Recipe(
        "metrics", evaluation, "eval", STAGE_VERSION, settings, {"predictions": predictions}
    )

    def work(writer: Writer) -> None:
        for message in missing_metrics(tasks).values():
            run.say(f"eval {evaluation}: {message}")
        writer.write_part(
            0, summarise(predictions.table(columns=ANSWER_COLUMNS), truth, reading=reading)
        )

    return make(run, recipe, work, out=run.out and run.out / "metrics")


def _predict(run: Run, evaluation: str) -> Version:
    config, model = run.config.eval, run.config.model
    asked = read_evaluation(evaluation)
    image = SHOWN.get(asked.image, "matching")
    inputs = {"prompts": run.latest("prompts", asked.split)}
    adapter = None
    if asked.model != BASE:
        place = run.inputs.get("adapter") or run.place("adapter", asked.model)
        adapter = open_version(place, "adapter")
        inputs["adapter"] = adapter
        if not config.allow_train_images:
            refuse_images_of(adapter, inputs["prompts"])
    resolved, model_settings = find_model(model, run.scratch)
    found = {"image": image, "reward": {AUTO: 1.0}, **reading_settings(model), **model_settings}
    settings = counted_settings("predictions", config, found)
    recipe = Recipe(
        "predictions", evaluation, "eval", STAGE_VERSION, settings, inputs, notes=model_notes(model)
    )

    def work(writer: Writer) -> Mapping[str, Any]:
        rows = inputs["prompts"].table(columns=PROMPT_COLUMNS)
        shown = rows.to_pylist()
        if image == "other":
            shown = with_other_images(shown)[: config.condition_prompts]
        vlm = _open(run, resolved, model_settings, None if adapter is None else adapter.path)
        if image == "blank":
            mean_rgb = tuple(vlm.processor.image_processor.image_mean)
            shown = with_blank_images(shown[: config.condition_prompts], mean_rgb)
        doubt = unusual_boxes(vlm.family, model)
        if doubt and image == "matching" and "grounding" in rows["task"].to_pylist():
            run.say(f"eval {evaluation}: {doubt}")
        parts = range(0, len(shown), config.prompts_per_part)
        for index, start in enumerate(run.progress(parts, f"eval {evaluation}")):
            if not writer.has_part(index):
                part = shown[start : start + config.prompts_per_part]
                writer.write_part(index, _predict_part(vlm, part, rows, run, settings))
        return {"prompts": len(shown)}

    return make(run, recipe, work, out=run.out and run.out / "predictions")


def refuse_images_of(adapter: Version, prompts: Version) -> None:
    """Raise `ArtifactError` if the prompts show images from the adapter's training lists."""
    preferences = input_of(adapter, "preferences")
    lists = preferences.table(columns=["prompt_id"])["prompt_id"]
    sampled = input_of(adapter, "prompts").table(columns=["prompt_id", "image_sha256"])
    trained = sampled.filter(pc.is_in(sampled["prompt_id"], lists))["image_sha256"]
    asked = prompts.table(columns=["image_sha256"])["image_sha256"]
    refuse_trained_images(set(trained.to_pylist()), set(asked.to_pylist()), str(prompts.path))


def _open(
    run: Run, resolved: Any, model_settings: Mapping[str, Any], adapter: Path | None
) -> "Vlm":
    from perpo_pipeline.vlm.merging import merge_in_memory

    vlm = open_model(run.config.model, resolved, model_settings, run.scratch, adapter)
    return merge_in_memory(vlm)


def _predict_part(
    vlm: "Vlm", rows: list[Row], truth: pa.Table, run: Run, settings: Mapping[str, Any]
) -> list[Row]:
    from perpo_pipeline.vlm.decoding import greedy_decode

    answers, resized = [], []
    for start in range(0, len(rows), settings["batch_size"]):
        batch = rows[start : start + settings["batch_size"]]
        encoded = [encode_row(vlm, row, settings["preprocess"]) for row in batch]
        answers += greedy_decode(vlm, encoded, max_new_tokens=settings["max_new_tokens"])
        resized += [prompt.resized for prompt in encoded]
    samples = pa.table(
        {
            "prompt_id": [row["prompt_id"] for row in rows],
            "sample_id": pa.array([0] * len(rows), pa.int32()),
            "completion": [answer.text for answer in answers],
            "resized": pa.array(resized, SIZE),
        }
    )
    reading = run.config.model.reading()
    scored = score_samples(samples, truth, reward=AUTO, reading=reading).to_pylist()
    return [
        {
            "prompt_id": row["prompt_id"],
            "image_prompt_id": row.get("image_prompt_id", row["prompt_id"]),
            "completion": answer.text,
            "completion_token_ids": answer.token_ids,
            "finish_reason": answer.finish_reason,
            "resized": size,
            "reward": measured["reward"],
            "parse_ok": measured["parse_ok"],
            "box": measured["box"],
        }
        for row, answer, size, measured in zip(rows, answers, resized, scored, strict=True)
    ]
