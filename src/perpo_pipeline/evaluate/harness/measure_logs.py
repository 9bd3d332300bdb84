"""Finished logs of a harness -> `harness` (the scores of its questions) and `metrics`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.evaluate.harness.logs import Aggregate, HarnessLogs
from perpo_pipeline.evaluate.harness.read_logs import read_logs
from perpo_pipeline.evaluate.harness.scores import measure_task
from perpo_pipeline.run import Console, make_at
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
    console = console or Console()
    logs = read_logs(path)
    measured = measure(logs)
    settings = {
        "harness": logs.harness,
        "files_sha256": {file.name: file_sha256(file) for file in logs.files},
    }
    variant = (path if path.is_dir() else path.parent).resolve().name
    recipe = Recipe("harness", variant, STAGE, STAGE_VERSION, settings, notes=measured.notes)

    def write_scores(writer: Writer) -> None:
        writer.write_part(0, measured.scores)
        for message in measured.messages:
            console.say(f"{STAGE} {variant}: {message}")

    made = make_at(out / "harness", recipe, write_scores, console)
    return write_metrics(made, measured.metrics, out / "metrics", console)


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
