"""`perpo eval`: prompts and a model (with or without an adapter) -> predictions and metrics.

Decoding is greedy. The evaluation `<model>@<split>` shows each question with its own image,
`<model>-other-image@<split>` with the image of another prompt, `<model>-blank-image@<split>` with a
blank one: answers that are still right were guessed.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc

from perpo_pipeline.config.evaluations import BASE, BLANK_IMAGE, OTHER_IMAGE, read_evaluation
from perpo_pipeline.config.fingerprints import counted_settings, reading_settings
from perpo_pipeline.evaluate.images_shown import refuse_trained_images
from perpo_pipeline.evaluate.metrics import measured_metrics, missing_metrics, tasks_of
from perpo_pipeline.evaluate.predict import BLANK, OTHER, write_predictions
from perpo_pipeline.evaluate.summarise import ANSWER_COLUMNS, QUESTION_COLUMNS, summarise
from perpo_pipeline.inference.backend import BackendSetup
from perpo_pipeline.inference.backends import choose_backend
from perpo_pipeline.inference.engines import check_engine
from perpo_pipeline.inference.failures import report_failures
from perpo_pipeline.rewards.builtin import AUTO
from perpo_pipeline.run import Run, make
from perpo_pipeline.store.artifacts import Version, input_of, open_version
from perpo_pipeline.store.writing import Recipe, Writer
from perpo_pipeline.vlm.families import family_of, unusual_boxes
from perpo_pipeline.vlm.files import ResolvedModel
from perpo_pipeline.vlm.inputs import find_model, model_notes

STAGE_VERSION = 4
SHOWN = {OTHER_IMAGE: OTHER, BLANK_IMAGE: BLANK}


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
    backend = choose_backend(config, model.device)
    found = {
        "backend": backend,
        "image": image,
        "reward": {AUTO: 1.0},
        **reading_settings(model),
        **model_settings,
    }
    settings = counted_settings("predictions", config, found)
    recipe = Recipe(
        "predictions", evaluation, "eval", STAGE_VERSION, settings, inputs, notes=model_notes(model)
    )
    setup = BackendSetup(
        model,
        resolved,
        model_settings,
        config.model_copy(update={"backend": backend}),
        run.scratch,
        adapter=None if adapter is None else adapter.path,
    )

    def work(writer: Writer) -> Mapping[str, Any]:
        check_engine(config, model)
        if image == "matching":
            _warn_of_boxes(run, evaluation, setup.resolved, inputs["prompts"])
        title = f"eval {evaluation}"
        return write_predictions(run, writer, inputs["prompts"], image, title, setup)

    predictions = make(run, recipe, work, out=run.out and run.out / "predictions")
    report_failures(run, predictions, config.max_errors, "are unanswered and count as wrong")
    return predictions


def _warn_of_boxes(run: Run, evaluation: str, resolved: ResolvedModel, prompts: Version) -> None:
    """Print a warning if the box format or frame is unusual for this model's family."""
    doubt = unusual_boxes(family_of(resolved), run.config.model)
    if doubt and "grounding" in prompts.table(columns=["task"])["task"].to_pylist():
        run.say(f"eval {evaluation}: {doubt}")


def refuse_images_of(adapter: Version, prompts: Version) -> None:
    """Raise `ArtifactError` if the prompts show images from the adapter's training lists."""
    preferences = input_of(adapter, "preferences")
    lists = preferences.table(columns=["prompt_id"])["prompt_id"]
    sampled = input_of(adapter, "prompts").table(columns=["prompt_id", "image_sha256"])
    trained = sampled.filter(pc.is_in(sampled["prompt_id"], lists))["image_sha256"]
    asked = prompts.table(columns=["image_sha256"])["image_sha256"]
    refuse_trained_images(set(trained.to_pylist()), set(asked.to_pylist()), str(prompts.path))
