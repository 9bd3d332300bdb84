"""Finished logs of a harness -> `harness` (the scores of its questions) and `metrics`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perpo_pipeline.config.evaluations import AT, BASE
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.evaluate.harness.logs import Aggregate, HarnessLogs
from perpo_pipeline.evaluate.harness.read_logs import read_logs
from perpo_pipeline.evaluate.harness.scores import measure_task
from perpo_pipeline.run import Console, Run, make_at
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.atomic import file_sha256
from perpo_pipeline.store.writing import Recipe, Writer

STAGE = "measure"
STAGE_VERSION = 1
SHOWN = 4

Row = dict[str, Any]


@dataclass(frozen=True)
class MeasuredLogs:
    """The rows of both tables, and what the manifest and the user should know."""

    metrics: list[Row]
    scores: list[Row]
    notes: Row
    messages: list[str]


def measure_logs(path: Path, *, out: Path, console: Console | None = None) -> Version:
    """Read the finished logs at `path` into the artifacts `harness` and `metrics` under `out`.

    Returns the metrics. Raises as `read_logs`, before anything is written.
    """
    variant = (path if path.is_dir() else path.parent).resolve().name
    places = (out / "harness", out / "metrics")
    return _take_over(read_logs(path), variant, {}, places, console or Console())


def file_logs(path: Path, run: Run, model: str) -> Version:
    """As `measure_logs`, as results of a model of the run: under MODEL@HARNESS.

    Nothing in the logs shows that they are this model's: the caller says so. Raises ArtifactError
    if a trained model has no adapter yet.
    """
    logs = read_logs(path)
    variant = f"{model}{AT}{logs.harness}"
    inputs = {} if model == BASE else {"adapter": run.latest("adapter", model)}
    places = (run.place("harness", variant), run.place("metrics", variant))
    return _take_over(logs, variant, inputs, places, run)


def _take_over(
    logs: HarnessLogs,
    variant: str,
    inputs: dict[str, Version],
    places: tuple[Path, Path],
    console: Console,
) -> Version:
    measured = measure(logs)
    settings = {
        "harness": logs.harness,
        "files_sha256": {file.name: file_sha256(file) for file in logs.files},
        # Earlier programs filed the same files of these under another task.
        **({"told_apart": list(logs.told_apart)} if logs.told_apart else {}),
    }
    recipe = Recipe("harness", variant, STAGE, STAGE_VERSION, settings, inputs, measured.notes)

    def write_scores(writer: Writer) -> None:
        writer.write_part(0, measured.scores)
        for message in measured.messages:
            console.say(f"{STAGE} {variant}: {message}")

    made = make_at(places[0], recipe, write_scores, console)
    return write_metrics(made, measured.metrics, places[1], console)


def write_metrics(scores: Version, rows: Sequence[Row], place: Path, console: Console) -> Version:
    """The `metrics` of a `harness` artifact, at `place`."""
    recipe = Recipe(
        "metrics", scores.variant, STAGE, STAGE_VERSION, {"metrics": "harness"}, {"harness": scores}
    )
    return make_at(place, recipe, lambda writer: writer.write_part(0, list(rows)), console)


def measure(logs: HarnessLogs) -> MeasuredLogs:
    """Measure all tasks of a log; raises ConfigError if it holds no number."""
    metrics, scores, without = [], [], []
    messages: list[str] = []
    for log in logs.tasks:
        found = measure_task(logs.harness, log)
        metrics += found[0]
        scores += found[1]
        without += found[2]
        messages += log.notes
    if not metrics:
        raise ConfigError("the logs hold no number", fix="give the logs of tasks that have one")
    if without:
        more = f", ... ({len(without)} in all)" if len(without) > SHOWN else ""
        messages.append(
            "no interval, since the scores of the questions are not there or do not give it: "
            + ", ".join(without[:SHOWN])
            + more
        )
    unknown = [log.task for log in logs.tasks if log.asked and not log.asked[0].image]
    if unknown:
        messages.append(
            f"the log does not name the images of {', '.join(unknown)}: the intervals take its "
            "questions as independent, and are too narrow where several ask about one image"
        )
    return MeasuredLogs(metrics, scores, _notes(logs, without), messages)


def _notes(logs: HarnessLogs, without: Sequence[str]) -> Row:
    return {
        "harness": logs.harness,
        "harness_version": logs.program_version,
        "model": logs.model,
        "tasks": {
            log.task: {
                "version": log.version,
                "task_hash": log.task_hash,
                "questions": log.num_questions,
                "higher_is_better": _directions(log.aggregates),
            }
            for log in logs.tasks
        },
        "without_interval": list(without),
    }


def _directions(aggregates: Sequence[Aggregate]) -> Row:
    return {aggregate.metric: aggregate.higher_is_better for aggregate in aggregates}
