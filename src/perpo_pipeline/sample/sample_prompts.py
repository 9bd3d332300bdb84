"""`perpo sample`: prompts and a model in, the samples artifact out, in parts of whole prompts."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from perpo_pipeline.config.by_task import fit_to_tasks
from perpo_pipeline.config.fingerprints import STAGE_VERSIONS, counted_settings
from perpo_pipeline.inference.answering import Task, answer_prompts, warn_of_boxes
from perpo_pipeline.inference.backend import BackendSetup
from perpo_pipeline.inference.backends import choose_backend
from perpo_pipeline.inference.engines import check_engine
from perpo_pipeline.inference.failures import report_failures
from perpo_pipeline.inference.long_truths import warn_of_long_truths
from perpo_pipeline.inference.part_sampler import PROMPT_COLUMNS
from perpo_pipeline.rewards.scoring import TRUTH_COLUMNS
from perpo_pipeline.run import Run, make
from perpo_pipeline.sample.preview import RewardPreview
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.writing import Recipe, Writer
from perpo_pipeline.vlm.inputs import find_model, model_notes

STAGE_VERSION = STAGE_VERSIONS["samples"]


def sample(run: Run, split: str) -> Version:
    """Write N completions of every prompt of one split.

    A prompt that cannot be sampled goes to `errors` with its reason. Once more than `max_errors`
    have failed, no new part is begun and InputError is raised. Finished parts are kept: the same
    command retries the prompts that failed and resumes.
    """
    prompts = run.latest("prompts", split)
    config = fit_to_tasks(run.config.sample, "sample", prompts)
    inputs = {"prompts": prompts}
    if "adapter" in run.inputs:
        inputs["adapter"] = run.latest("adapter")
    resolved, model_settings = find_model(
        run.config.model, run.scratch, computes_here=config.computes_here
    )
    backend = choose_backend(config, run.config.model.device, run.config.model.quantization)
    found = {"backend": backend, "seed": run.config.seed, **model_settings}
    settings = counted_settings("samples", config, found)
    notes = model_notes(run.config.model)
    recipe = Recipe("samples", split, "sample", STAGE_VERSION, settings, inputs, notes=notes)
    setup = BackendSetup(
        run.config.model,
        resolved,
        model_settings,
        config.model_copy(update={"backend": backend}),
        run.scratch,
        adapter=inputs["adapter"].path if "adapter" in inputs else None,
    )
    version = make(run, recipe, partial(_write_samples, run, split, setup, prompts), out=run.out)
    report_failures(run, version, config.max_errors, "could not be sampled")
    return version


def _write_samples(
    run: Run, split: str, setup: BackendSetup, prompts: Version, writer: Writer
) -> Mapping[str, Any]:
    """Sample and write the parts that are not there yet; returns the counts for the manifest."""
    check_engine(run.config.sample, run.config.model)
    table = prompts.table(columns=list(dict.fromkeys([*PROMPT_COLUMNS, *TRUTH_COLUMNS])))
    warn_of_boxes(run, f"sample {split}", setup, table)
    long = warn_of_long_truths(run, f"sample {split}", setup, table, "sample")
    task = Task(
        f"sample {split}",
        "sampled",
        rows_of=lambda part, rows: rows,
        preview=RewardPreview(run.config),
    )
    return {**answer_prompts(run, writer, table, setup, seed=run.config.seed, task=task), **long}
