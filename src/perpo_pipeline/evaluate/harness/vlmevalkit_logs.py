"""The finished outputs of VLMEvalKit: one folder for a model, one set of files for each benchmark.

    MODEL_BENCHMARK_acc.csv or _score.csv, .json     the numbers
    MODEL_BENCHMARK_JUDGE_result.xlsx, _auxmatch.xlsx, _results.xlsx, _JUDGE.xlsx, ...
                                                     each question, with `hit` or a score
    status.json                                      (newer versions) model, benchmarks, state

The files of questions may be xlsx, tsv or json (its PRED_FORMAT). Its `.pkl` files are never read:
a pickle can run code. Source: open-compass/VLMEvalKit, vlmeval/smp and vlmeval/dataset, e8e78f0.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from perpo_pipeline.errors import InputError
from perpo_pipeline.evaluate.harness.logs import (
    UNKNOWN,
    VLMEVALKIT,
    Aggregate,
    Asked,
    HarnessLogs,
    TaskLog,
    question_sha256,
    storable,
)
from perpo_pipeline.evaluate.harness.tables import FORMATS, number_in, read_table
from perpo_pipeline.json_files import Row, read_json

STATUS = "status.json"
NUMBERS = re.compile(r"_(acc|score)\.(csv|json)$")
EVAL_ID = re.compile(r"T\d{8}")
ONE_SCORE = ("hit", "eval_score", "score")
ALL_ROWS = ("overall", "none", "")
# Columns about all questions, in which more is better; the others, such as categories, are about
# some of them.
WHOLE = (
    *("overall", "acc", "aacc", "accuracy", "score", "average", "relative score (main)"),
    *("precision", "recall", "f1", "f1_score"),
)
ONE_RUN = "give the folder of one finished run"
REFERENCE_SCORE, EXTRACTED, ANSWER = "gpt4_score", "extracted", "answer"
ASKED = ("question", "answer", *"ABCDEFGH")


def result_files(path: Path) -> list[Path]:
    """The files of numbers in the folder `path`, sorted; symlinks of older runs are left out."""
    if not path.is_dir():
        return []
    files = [file for file in sorted(path.rglob("*")) if NUMBERS.search(file.name)]
    return [file for file in files if not file.is_symlink()]


def read_vlmevalkit(files: Sequence[Path]) -> HarnessLogs:
    """Read the outputs of one model, given its files of numbers.

    Raises InputError, with file and line, for outputs of several models or of several runs, for
    benchmarks that are not done, and for damaged files.
    """
    folders = sorted({file.parent for file in files})
    if len(folders) > 1:
        raise InputError(
            f"results in {len(folders)} folders: {', '.join(map(str, folders[:4]))}",
            fix="give the folder of one run of one model",
        )
    folder = folders[0]
    status = _status(folder)
    model = str(status.get("model_name") or _folder_model(folder))
    read = [folder / STATUS] if status else []
    tasks: dict[str, TaskLog] = {}
    for file in files:
        task = _benchmark(file, model, status)
        if task in tasks:
            raise InputError(
                f"the benchmark {task} has two files of numbers", where=str(file), fix=ONE_RUN
            )
        tasks[task] = _task(file, model, task, read)
    commit = status.get("commit") or status.get("git_commit")
    named = None if commit is None else str(commit)
    return HarnessLogs(VLMEVALKIT, model, named, tuple(tasks.values()), tuple(read))


def _status(folder: Path) -> Row:
    file = folder / STATUS
    if not file.is_file():
        return {}
    found = read_json(file)
    benchmarks = found.get("datasets") if isinstance(found, dict) else None
    if not isinstance(benchmarks, dict):
        raise InputError("not VLMEvalKit's status: no `datasets`", where=str(file), fix=ONE_RUN)
    for name, entry in benchmarks.items():
        state = entry.get("status") if isinstance(entry, dict) else None
        if state != "done":
            raise InputError(
                f"the benchmark {name} is not done (status: {state})",
                where=str(file),
                fix="let VLMEvalKit finish it, or remove its entry and files",
            )
    return dict(found)


def _folder_model(folder: Path) -> str:
    """VLMEvalKit's layout: outputs/MODEL/, in newer versions outputs/MODEL/T<date>.../."""
    return folder.resolve().parent.name if EVAL_ID.match(folder.name) else folder.resolve().name


def _benchmark(file: Path, model: str, status: Row) -> str:
    """The benchmark of a file MODEL_BENCHMARK[_JUDGE]_acc.csv."""
    stem = NUMBERS.sub("", file.name)
    if not stem.startswith(f"{model}_"):
        raise InputError(
            f"the file does not begin with its model's name, {model}",
            where=str(file),
            fix="keep VLMEvalKit's layout: outputs/MODEL/MODEL_BENCHMARK_acc.csv",
        )
    rest = stem.removeprefix(f"{model}_")
    listed = map(str, status.get("datasets", {}))
    named = [name for name in listed if (rest + "_").startswith(f"{name}_")]
    if named:
        return max(named, key=len)
    predicted = [
        other.stem.removeprefix(f"{model}_")
        for other in file.parent.glob(f"{model}_*")
        if other.suffix[1:] in FORMATS and not NUMBERS.search(other.name)
    ]
    starts = [name for name in predicted if name and (rest + "_").startswith(f"{name}_")]
    return min(starts, key=len) if starts else rest


def _task(file: Path, model: str, task: str, read: list[Path]) -> TaskLog:
    read.append(file)
    notes: list[str] = []
    rows, source = _questions(file.parent, f"{model}_{task}_", task, notes)
    if source is not None:
        read.append(source)
    aggregates = tuple(_aggregates(task, read_table(file)))
    if not aggregates:
        raise InputError("no number in this file", where=str(file), fix=ONE_RUN)
    asked = None if rows is None else tuple(_asked(rows, aggregates, source))
    return TaskLog(task, aggregates, asked, len(rows or ()), notes=tuple(notes))


def _aggregates(task: str, rows: Sequence[Row]) -> Iterator[Aggregate]:
    """Each number under its column's name; in brackets the texts beside it, such as the split."""
    for row in rows:
        numbers = {name: number_in(cell) for name, cell in row.items() if name != "split"}
        texts = [str(v) for k, v in row.items() if numbers.get(k) is None and v is not None]
        beside = ", ".join(text for text in texts if text.lower() not in ALL_ROWS)
        several = f" [{beside}]" if beside and len(rows) > 1 else ""
        for name, value in numbers.items():
            if value is not None:
                is_whole = not several and name.lower() in WHOLE
                formula = None if is_whole else UNKNOWN
                if task.startswith("POPE") and name == "Overall" and is_whole:
                    formula = "f1"
                yield Aggregate(
                    storable(f"{name}{several}"), value, True if is_whole else None, formula
                )


def _questions(
    folder: Path, prefix: str, task: str, notes: list[str]
) -> tuple[list[Row] | None, Path | None]:
    """The rows of the benchmark's file that has a score for each question, and that file."""
    found = []
    for file in sorted(folder.glob(f"{prefix}*")):
        if NUMBERS.search(file.name) or file.suffix[1:] not in FORMATS:
            continue
        rows = read_table(file)
        if rows and "index" in rows[0] and any(name in rows[0] for name in ONE_SCORE):
            found.append((rows, file))
    if len(found) > 1:
        raise InputError(
            f"{len(found)} files have a score for each question of {task}: "
            + ", ".join(file.name for _, file in found),
            where=str(folder),
            fix="keep the file of the judge that made the numbers",
        )
    if found:
        return found[0]
    pickled = list(folder.glob(f"{prefix}*.pkl"))
    why = "only in a .pkl file, which is never read" if pickled else "not in this folder"
    notes.append(f"{task}: the scores of its questions are {why}; its numbers have no intervals")
    return None, None


def _asked(
    rows: Sequence[Row], aggregates: Sequence[Aggregate], source: Path | None
) -> Iterator[Asked]:
    column = next(name for name in ONE_SCORE if name in rows[0])
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        index, score = row.get("index"), number_in(row.get(column))
        doc_id = storable(index)
        if index is None or score is None or doc_id in seen:
            what = f"no `{'index' if index is None else column}`"
            what = f"the index {doc_id} occurs twice" if doc_id in seen else what
            raise InputError(f"question {number}: {what}", where=str(source), fix=ONE_RUN)
        seen.add(doc_id)
        image = row.get("image_path")
        digest = question_sha256(*(row.get(name) for name in ASKED))
        value = _value(row, score)
        values = {aggregate.metric: value for aggregate in aggregates}
        yield Asked(doc_id, digest, None if image is None else storable(image), values)


def _value(row: Mapping[str, Any], score: float) -> Row:
    value: Row = {"score": score}
    if EXTRACTED in row and ANSWER in row:
        value |= {"prediction": str(row[EXTRACTED]), "ground_truth": str(row[ANSWER])}
    if (reference := number_in(row.get(REFERENCE_SCORE))) is not None:
        value["scores"] = [reference, score]
    return value
