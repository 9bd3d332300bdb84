"""Measure an adapter, or the base, as `perpo eval` does: greedy answers, scored and summarised."""

import hashlib
from pathlib import Path
from typing import Any

from figures import save

from online.apart import run_apart
from online.ours import read
from online.plan import Plan
from perpo_pipeline.config.run import RunConfig

Row = dict[str, Any]


def measure(plan: Plan, point: Row, split: str) -> Row:
    """The metric on a split: {value, low, high, n, values}, from disk if there.

    `point` names a folder in `plan.out`, of an `adapter` on the base or of a whole `model`, or none
    for the base itself. `values` holds one number per prompt.
    """
    name = name_of(point)
    found = plan.out / "metrics" / f"{name}@{split}.json"
    if not found.is_file():
        log = plan.out / "logs" / f"eval-{name}-{split}.log"
        run_apart(log, _measure_here, plan, plan.load(), point, split, found)
    return dict(read(found))


def name_of(point: Row) -> str:
    """The name of its files."""
    folder = point.get("adapter") or point.get("model")
    return "base" if folder is None else hashlib.sha256(folder.encode()).hexdigest()[:16]


def _measure_here(plan: Plan, config: RunConfig, point: Row, split: str, found: Path) -> None:
    import pyarrow as pa

    from perpo_pipeline.evaluate.summarise import summarise, values_of
    from perpo_pipeline.run import Run
    from perpo_pipeline.store.schemas import PREDICTIONS

    run = Run(config, quiet=True)
    prompts = run.latest("prompts", split)
    answers = _answer(plan, run, prompts, point)
    predictions = pa.Table.from_pylist(answers, schema=PREDICTIONS.columns)
    reading = config.model.reading()
    rows = summarise(predictions, prompts.table(), reading=reading)
    (row,) = [one for one in rows if one["name"] == plan.metric]
    values = values_of(predictions, prompts.table(), [plan.metric], reading=reading)[plan.metric]
    numbers = {name: row[name] for name in ("value", "low", "high", "n")}
    save(found, {**numbers, "values": values.tolist()})


def _answer(plan: Plan, run: Any, prompts: Any, point: Row) -> list[Row]:
    """Rows of predictions, in the order of the prompts; a prompt that fails counts as wrong."""
    from perpo_pipeline.evaluate.predict import MATCHING, prediction_rows, show_images
    from perpo_pipeline.inference.backend import BackendSetup
    from perpo_pipeline.inference.part_sampler import PLACE_IN_PART, PartSampler
    from perpo_pipeline.vlm.inputs import find_model

    model = run.config.model
    if (merged := point.get("model")) is not None:
        model = model.model_copy(update={"id": str(plan.out / merged)})
    resolved, settings = find_model(model, run.scratch)
    section = run.config.eval.model_copy(update={"backend": "transformers"})
    adapter = point.get("adapter")
    folder = None if adapter is None else plan.out / adapter
    setup = BackendSetup(model, resolved, settings, section, run.scratch, adapter=folder)
    shown = show_images(prompts, MATCHING, 0, setup)
    rows = [row | {PLACE_IN_PART: index} for index, row in enumerate(shown.to_pylist())]
    sampler = PartSampler(setup, run.config.seed)
    try:
        found = sampler.sample(rows, lambda *_: None)
    finally:
        sampler.close()
    made = prediction_rows(shown, found, model, run.config.eval.normalise)
    return [row for row in made if "reason" not in row]
