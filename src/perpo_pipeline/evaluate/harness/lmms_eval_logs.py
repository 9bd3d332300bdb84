"""The logs of lmms-eval: `DATE_results.json` and, with --log_samples, `DATE_samples_TASK.jsonl`.

Both are as `lmms_eval.loggers.evaluation_tracker` writes them (read: 0.7.3). A sample's `doc_hash`
is the same for all questions there (the hash of `null`), so questions are identified by their text
and their true answer instead.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from perpo_pipeline.errors import InputError
from perpo_pipeline.evaluate.harness.logs import (
    LMMS_EVAL,
    Aggregate,
    Asked,
    HarnessLogs,
    TaskLog,
    number_of,
    question_sha256,
    storable,
)
from perpo_pipeline.json_files import Faults, Row, read_json, read_json_lines

RESULTS, SAMPLES = "_results.json", "_samples_"
NO_FILTER = "none"
AGAIN = "run lmms-eval again on these tasks, with --log_samples"


def results_files(path: Path) -> list[Path]:
    """The files of results at `path`, a file or a folder; sorted."""
    if path.is_file():
        return [path] if path.name.endswith(RESULTS) else []
    return sorted(path.rglob(f"*{RESULTS}"))


def unfinished_files(path: Path) -> list[Path]:
    """Files of samples without their file of results: lmms-eval writes that one first."""
    return [
        file
        for file in sorted(path.rglob(f"*{SAMPLES}*.jsonl"))
        if not file.with_name(file.name.split(SAMPLES)[0] + RESULTS).is_file()
    ]


def read_lmms_eval(files: Sequence[Path]) -> HarnessLogs:
    """Read files of results, each with its files of samples.

    Raises InputError, with file and line, for logs of several models, for a task with two logs, and
    for damaged or unfinished files.
    """
    found = [(file, _checked(file, read_json(file))) for file in files]
    models = {_model(results): file for file, results in reversed(found)}
    if len(models) > 1:
        raise InputError(
            f"logs of {len(models)} models: "
            + "; ".join(f"{name} in {file}" for name, file in sorted(models.items())),
            fix="give the folder or the file of results of one model",
        )
    tasks: dict[str, TaskLog] = {}
    read = list(files)
    for file, results in found:
        for task in _tasks(file, results, read):
            if task.task in tasks:
                raise InputError(
                    f"the task {task.task} has two logs, the later in this file",
                    where=str(file),
                    fix="give one of these files of results instead of their folder",
                )
            tasks[task.task] = task
    version = found[0][1].get("lmms_eval_version")
    return HarnessLogs(
        LMMS_EVAL, next(iter(models)), _text(version), tuple(tasks.values()), tuple(read)
    )


def _checked(file: Path, results: Any) -> Row:
    if isinstance(results, dict) and isinstance(results.get("results"), dict):
        return results
    raise InputError(
        "not a file of lmms-eval's results: it has no `results`", where=str(file), fix=AGAIN
    )


def _model(results: Row) -> str:
    config = results.get("config")
    named = config.get("model_args") if isinstance(config, dict) else None
    return storable(results.get("model_name") or named or "unknown")


def _tasks(file: Path, results: Row, read: list[Path]) -> Iterator[TaskLog]:
    stem = file.name.removesuffix(RESULTS)
    for named, numbers in results["results"].items():
        task = storable(named)
        if not isinstance(numbers, dict):
            raise InputError(f"`results.{task}` is not an object", where=str(file), fix=AGAIN)
        aggregates, notes = _aggregates(results, task, numbers)
        if not aggregates and not notes:
            continue  # a group that only lists its tasks
        if Path(task).name != task:
            raise InputError(f"{task!r} is no task's name", where=str(file), fix=AGAIN)
        samples = file.with_name(f"{stem}{SAMPLES}{task}.jsonl")
        asked = None
        if samples.is_file():
            asked = _read_samples(samples)
            read.append(samples)
        effective = _part(results, "n-samples", task).get("effective")
        number = len(asked) if asked is not None else int(number_of(effective) or 0)
        yield TaskLog(
            task=str(task),
            aggregates=tuple(aggregates),
            asked=asked,
            num_questions=number,
            version=_text(_part(results, "versions").get(task)),
            task_hash=_text(_part(results, "task_hashes").get(task)),
            notes=(*notes, *_size_notes(results, task, samples, asked)),
        )


def _aggregates(results: Row, task: str, numbers: Row) -> tuple[list[Aggregate], list[str]]:
    """The task's numbers, and a note for each that has no value (a file to submit)."""
    directions = _part(results, "higher_is_better", task)
    means = _plain_means(_part(results, "configs", task))
    found, notes = [], []
    for key, value in numbers.items():
        name, comma, filtered = str(key).rpartition(",")
        if not comma or "_stderr" in name:
            continue
        number = number_of(value)
        if number is None:
            notes.append(f"{task}: {name} has no number in the log and is left out")
            continue
        direction = directions.get(name)
        better = direction if isinstance(direction, bool) else None
        metric = storable(name if filtered == NO_FILTER else f"{name},{filtered}")
        scale = 1.0 if name in means else None
        found.append(Aggregate(metric, number, better, scale=scale))
    return found, notes


def _plain_means(config: Row) -> set[str]:
    """The metrics that the task's settings aggregate by a plain mean."""
    listed = config.get("metric_list")
    entries = (
        [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    )
    return {str(entry.get("metric")) for entry in entries if entry.get("aggregation") == "mean"}


def _size_notes(
    results: Row, task: str, samples: Path, asked: Sequence[Asked] | None
) -> Iterator[str]:
    counts = _part(results, "n-samples", task)
    original, effective = (number_of(counts.get(k)) for k in ("original", "effective"))
    config = _part(results, "config")
    whole = config.get("limit") in (None, -1) and not config.get("offset")
    if asked is not None and whole and effective is not None and len(asked) != effective:
        raise InputError(
            f"{len(asked)} of {effective:.0f} questions: the log is unfinished or was cut",
            where=str(samples),
            fix=AGAIN,
        )
    number = len(asked) if asked is not None else effective
    if original is not None and number is not None and number < original:
        yield f"{task}: {number:.0f} of {original:.0f} questions were asked (--limit)"


def _read_samples(file: Path) -> tuple[Asked, ...]:
    faults = Faults(file, fix=AGAIN)
    found: dict[str, Asked] = {}
    repeated: set[str] = set()
    for number, row in read_json_lines(file, faults):
        doc_id = row.get("doc_id")
        if not isinstance(doc_id, int | str) or isinstance(doc_id, bool):
            faults.add(f"line {number}", "`doc_id` is missing or neither a number nor a text")
            continue
        name = storable(doc_id)
        if name in found:
            repeated.add(name)
        found[name] = _asked(name, row)
    faults.check()
    if repeated and len(repeated) < len(found):
        raise InputError(
            f"{len(repeated)} questions occur several times, first doc_id {min(repeated)}",
            where=str(file),
            fix=AGAIN,
        )
    return tuple(found.values())


def _asked(doc_id: str, row: Row) -> Asked:
    media = row.get("input_media")
    first = media[0] if isinstance(media, list) and media else None
    image = _image_name(first) if isinstance(first, str) else None
    digest = question_sha256(row.get("input"), row.get("target"))
    return Asked(doc_id, digest, image, row)


def _image_name(media: str) -> str:
    """The image's path or URL; for a data URL, which holds the whole image, its sha256."""
    return question_sha256(media) if media.startswith("data:") else storable(media)


def _part(results: Row, *keys: str) -> Row:
    found: Any = results
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> str | None:
    return None if value is None else storable(value)
