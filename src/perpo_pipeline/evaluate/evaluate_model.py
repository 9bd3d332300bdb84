"""`perpo eval`: prompts and a model (with or without an adapter) -> predictions and metrics.

Decoding is greedy. The evaluation `<model>@<split>` shows each question with its own image,
`<model>-other-image@<split>` with the image of another prompt, `<model>-blank-image@<split>` with a
blank one: answers that are still right were guessed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from perpo_pipeline.config.by_task import fit_to_tasks
from perpo_pipeline.config.evaluations import (
    BASE,
    BLANK_IMAGE,
    OTHER_IMAGE,
    Evaluation,
    read_evaluation,
    refuse_dataset_called_all,
)
from perpo_pipeline.config.fingerprints import (
    STAGE_VERSIONS,
    counted_settings,
    reading_settings,
)
from perpo_pipeline.errors import ArtifactError, InputError, PerpoError
from perpo_pipeline.evaluate.images_shown import refuse_trained_images
from perpo_pipeline.evaluate.metrics import OCR, VQA, measured_metrics, missing_metrics, tasks_of
from perpo_pipeline.evaluate.predict import BLANK, MATCHING, OTHER, write_predictions
from perpo_pipeline.evaluate.slices import EXTRA, check_slices
from perpo_pipeline.evaluate.summarise import ANSWER_COLUMNS, QUESTION_COLUMNS, doubts_of, summarise
from perpo_pipeline.inference.answering import warn_of_boxes
from perpo_pipeline.inference.backend import BackendSetup
from perpo_pipeline.inference.backends import check_adapter, choose_backend
from perpo_pipeline.inference.engines import check_engine
from perpo_pipeline.inference.failures import report_failures
from perpo_pipeline.inference.part_sampler import LastSampler
from perpo_pipeline.rewards.builtin import AUTO
from perpo_pipeline.rewards.normalise import named_forms
from perpo_pipeline.run import Run, make
from perpo_pipeline.store.artifacts import CURRENT, Version, input_of
from perpo_pipeline.store.list_prompts import rows_of_prompts
from perpo_pipeline.store.places import prompts_named
from perpo_pipeline.store.prompt_images import HASHES, all_hashes
from perpo_pipeline.store.writing import Recipe, Writer
from perpo_pipeline.vlm.inputs import find_model, model_notes

STAGE_VERSION = STAGE_VERSIONS["predictions"]
SHOWN_NAMES = 3  # evaluations named in a message
KIND_OF_IMAGE = {OTHER_IMAGE: OTHER, BLANK_IMAGE: BLANK}


def evaluate_all(run: Run, evaluations: Sequence[str]) -> Iterator[Version]:
    """Yield the metrics of each evaluation as it is done (`evaluate`).

    The prompts and adapters of all are checked before the first is decoded. A model that several in
    a row use is loaded once. An evaluation that ends with InputError (too many prompts unanswered)
    does not stop the others; InputError is raised after the last.
    """
    _check_inputs(run, evaluations)
    check_slices(run, list(dict.fromkeys(read_evaluation(name).split for name in evaluations)))
    failed: list[str] = []
    with closing(LastSampler()) as kept:
        for evaluation in evaluations:
            try:
                yield evaluate(run, evaluation, kept)
            except InputError as error:
                if len(evaluations) == 1:
                    raise
                run.say(f"eval {evaluation} failed: {error}")
                failed.append(evaluation)
    if failed:
        raise InputError(
            f"{len(failed)} of {len(evaluations)} evaluations failed: {', '.join(failed)}",
            fix="see the messages above; the same command makes only these again",
        )


def evaluate(run: Run, evaluation: str, kept: LastSampler | None = None) -> Version:
    """Predict and measure one evaluation, by its name (config/evaluations.py).

    Returns the metrics. Raises `ArtifactError` if the adapter was trained on images of the prompts,
    InputError if more prompts than `eval.max_errors` are unanswered. `kept` keeps the model.
    """
    predictions = _predict(run, evaluation, kept)
    prompts = input_of(predictions, "prompts")
    by = run.config.eval.by
    truth = prompts.table(columns=[*QUESTION_COLUMNS, *[EXTRA] * bool(by)])
    tasks, reading = tasks_of(truth), run.config.model.reading()
    normalise = run.config.eval.normalise
    names = [metric.name for metric in measured_metrics(tasks)]
    settings = counted_settings("metrics", None, {"metrics": names, "by": by})
    recipe = Recipe(
        "metrics",
        evaluation,
        "eval",
        STAGE_VERSIONS["metrics"],
        settings,
        {"predictions": predictions},
    )

    def work(writer: Writer) -> None:
        for message in missing_metrics(tasks).values():
            run.say(f"eval {evaluation}: {message}")
        if normalise and {OCR, VQA}.intersection(tasks):
            run.say(f"eval {evaluation}: {named_forms(normalise)}")
        answers = predictions.table(columns=ANSWER_COLUMNS)
        # A model that is shown a wrong image may well answer without a box.
        for line in [] if read_evaluation(evaluation).image else doubts_of(answers, truth, reading):
            run.say(f"eval {evaluation}: {line}")
        found = summarise(answers, truth, reading=reading, normalise=normalise, by=by)
        writer.write_part(0, found)

    with prompts_named(prompts):
        return make(run, recipe, work, out=run.out and run.out / "metrics")


def _check_inputs(run: Run, evaluations: Sequence[str]) -> None:
    """Raise the error of the inputs, or one error with all of them."""
    asked = [read_evaluation(name) for name in evaluations]
    wanted = [("prompts", one.split) for one in asked]
    wanted += [("adapter", one.model) for one in asked if one.model != BASE]
    run.all_latest([key for key in dict.fromkeys(wanted) if (run.place(*key) / CURRENT).is_file()])
    faults: dict[str, tuple[PerpoError, list[str]]] = {}
    for name in evaluations:
        try:
            _open_inputs(run, read_evaluation(name))
        except PerpoError as error:
            faults.setdefault(str(error), (error, []))[1].append(name)
    if len(faults) == 1:
        raise next(iter(faults.values()))[0]
    if faults:
        lines = [
            f"  - {_listed(names)}: {error.what} ({error.where}); {error.fix}"
            for error, names in faults.values()
        ]
        raise ArtifactError("these evaluations cannot be made:\n" + "\n".join(lines))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more


def _open_inputs(run: Run, asked: Evaluation) -> dict[str, Version]:
    """The prompts and, except for the base, the adapter."""
    prompts = run.latest("prompts", asked.split)
    datasets = pc.unique(prompts.table(columns=["dataset"])["dataset"]).to_pylist()
    refuse_dataset_called_all(datasets, asked.split, str(prompts.path))
    if asked.model == BASE:
        return {"prompts": prompts}
    adapter = run.latest("adapter", asked.model)
    check_adapter(run.config.eval.backend, adapter.path)
    if not run.config.eval.allow_train_images:
        refuse_images_of(adapter, prompts)
    return {"prompts": prompts, "adapter": adapter}


def _predict(run: Run, evaluation: str, kept: LastSampler | None) -> Version:
    model = run.config.model
    asked = read_evaluation(evaluation)
    image = KIND_OF_IMAGE.get(asked.image, MATCHING)
    inputs = _open_inputs(run, asked)
    config = fit_to_tasks(run.config.eval, "eval", inputs["prompts"])
    adapter = inputs.get("adapter")
    resolved, model_settings = find_model(model, run.scratch, computes_here=config.computes_here)
    backend = choose_backend(config, model.device, model.quantization)
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

    title = f"eval {evaluation}"

    def work(writer: Writer) -> Mapping[str, Any]:
        check_engine(config, model)
        if image == MATCHING:
            warn_of_boxes(run, title, setup, inputs["prompts"].table(columns=["task"]))
        return write_predictions(run, writer, inputs["prompts"], image, title, setup, kept)

    with prompts_named(inputs["prompts"]):
        predictions = make(run, recipe, work, out=run.out and run.out / "predictions")
    report_failures(run, predictions, config.max_errors, "are unanswered and count as wrong")
    return predictions


def refuse_images_of(adapter: Version, prompts: Version) -> None:
    """Raise `ArtifactError` if the prompts show images from the adapter's training lists."""
    preferences = input_of(adapter, "preferences")
    trained = preferences.table(columns=["prompt_id", "task"])
    if (tasks := adapter.manifest["settings"].get("tasks")) is not None:
        trained = trained.filter(pc.is_in(trained["task"], pa.array(tasks)))
    sampled = pa.concat_tables([*rows_of_prompts(preferences, ["prompt_id", *HASHES])])
    shown = sampled.filter(pc.is_in(sampled["prompt_id"], trained["prompt_id"]))
    asked = prompts.table(columns=HASHES)
    refuse_trained_images(all_hashes(shown), all_hashes(asked), str(prompts.path))
