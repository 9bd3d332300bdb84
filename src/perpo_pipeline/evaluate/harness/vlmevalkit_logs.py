"""The finished outputs of VLMEvalKit: one folder for a model, one set of files for each benchmark.

    MODEL_BENCHMARK_acc.csv or _score.csv, .json     the numbers
    MODEL_BENCHMARK_JUDGE_result.xlsx, _auxmatch.xlsx, _results.xlsx, _JUDGE.xlsx, ...
                                                     each question, with `hit` or a score
    status.json                                      (newer versions) model, benchmarks, state

    MODEL_BENCHMARK.xlsx                             the answers, before any judge

The files of questions may be xlsx, tsv or json (its PRED_FORMAT). Its `.pkl` files are never read:
a pickle can run code. Source: open-compass/VLMEvalKit, vlmeval/smp and vlmeval/dataset, e8e78f0.

A benchmark's name may be the beginning of another's (MMBench_DEV_EN and MMBench_DEV_EN_V11), so a
file is of the benchmark with the longest name that it begins with. Those names are the ones in
status.json, and those of files that no other file's name begins; a longer one is a benchmark, and
no judge's, if its file has answers that were not taken over from the shorter one's. A judge may
rewrite all of them, so it must have other questions, too, or both names have numbers of their own.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import permutations
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
BY_NAME = ("precision", "recall", "f1", "f1_score")
# Columns about all questions, in which more is better; the others, such as categories, are about
# some of them.
WHOLE = (
    *("overall", "acc", "aacc", "accuracy", "score", "average", "relative score (main)"),
    *BY_NAME,
)
ONE_RUN = "give the folder of one finished run"
REFERENCE_SCORE, EXTRACTED, ANSWER = "gpt4_score", "extracted", "answer"
ASKED = ("question", "answer", *"ABCDEFGH")
INDEX, QUESTION, PREDICTION = "index", "question", "prediction"


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
    outputs = _Outputs(folder, model)
    outputs.find_benchmarks(files, map(str, status.get("datasets", {})))
    tasks: dict[str, TaskLog] = {}
    for file in files:
        task = outputs.benchmark(file)
        if task in tasks:
            raise InputError(
                f"the benchmark {task} has two files of numbers", where=str(file), fix=ONE_RUN
            )
        tasks[task] = _task(file, outputs, task, read)
    commit = status.get("commit") or status.get("git_commit")
    named = None if commit is None else str(commit)
    found = tuple(tasks.values())
    return HarnessLogs(VLMEVALKIT, model, named, found, tuple(read), outputs.told_apart())


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


@dataclass
class _Outputs:
    """The files of one model in a folder, and which benchmark each of them is of."""

    folder: Path
    model: str
    benchmarks: set[str] = field(default_factory=set)
    table: Callable[[Path], list[Row]] = field(default_factory=lambda: cache(read_table))

    def find_benchmarks(self, numbers: Sequence[Path], listed: Iterable[str]) -> None:
        """Find the names of all benchmarks, among them those that `listed` has.

        Raises InputError for a file of numbers that does not begin with the model's name.
        """
        measured = [self._rest(file) for file in numbers]
        tables = {self._rest(file): file for file in self._files() if _is_table(file)}
        self.benchmarks = {name for name in listed if name}
        for rest in sorted({*measured, *tables} - {""}, key=lambda rest: (len(rest), rest)):
            shorter, table = self._longest_name(rest), tables.get(rest)
            is_measured = any(_begins(one, shorter or rest) for one in measured)
            if shorter is None or (
                shorter != rest
                and table is not None
                and is_measured
                and self._has_own_answers(
                    table, tables.get(shorter), both_measured=_have_both(measured, rest, shorter)
                )
            ):
                self.benchmarks.add(rest)

    def benchmark(self, file: Path) -> str:
        """The benchmark of a file MODEL_BENCHMARK[_JUDGE]_acc.csv, or of its questions."""
        rest = self._rest(file)
        return self._longest_name(rest) or rest

    def others(self, task: str) -> list[Path]:
        """The files of a benchmark beside its answers and its numbers, sorted."""
        prefix = f"{self.model}_{task}_"
        files = [file for file in self._files() if file.name.startswith(prefix)]
        return [f for f in files if not NUMBERS.search(f.name) and self.benchmark(f) == task]

    def told_apart(self) -> tuple[str, ...]:
        """The benchmarks whose names begin another's, and those others, sorted."""
        pairs = permutations(self.benchmarks, 2)
        return tuple(sorted({name for pair in pairs if _begins(*pair) for name in pair}))

    def _has_own_answers(self, file: Path, shorter: Path | None, *, both_measured: bool) -> bool:
        """Whether a table is of a benchmark's own answers, not what a judge wrote beside them.

        A judge's file has scores, or no answers, or the questions of the file with the shorter name
        (so may a benchmark's, of which there are numbers beside the shorter one's), or another
        column beside that file's answers, of which it may change a few.
        """
        rows = self.table(file)
        names = set(rows[0]) if rows else set()
        if not {INDEX, PREDICTION} <= names or names & {*ONE_SCORE}:
            return False
        base = [] if shorter is None else self.table(shorter)
        if not base:
            return True
        asked = {_cells(row, INDEX, QUESTION) for row in base}
        if not both_measured and all(_cells(row, INDEX, QUESTION) in asked for row in rows):
            return False
        if names <= set(base[0]):
            return True
        given = {_cells(row, INDEX, QUESTION, PREDICTION) for row in base}
        taken = [_cells(row, INDEX, QUESTION, PREDICTION) in given for row in rows]
        return 2 * sum(taken) <= len(rows)

    def _files(self) -> list[Path]:
        """The files that begin with the model's name, sorted."""
        return [f for f in sorted(self.folder.iterdir()) if f.name.startswith(f"{self.model}_")]

    def _longest_name(self, rest: str) -> str | None:
        return max((n for n in self.benchmarks if _begins(rest, n)), key=len, default=None)

    def _rest(self, file: Path) -> str:
        """A file's name without the model's and its ending."""
        stem = NUMBERS.sub("", file.name) if NUMBERS.search(file.name) else file.stem
        if not stem.startswith(f"{self.model}_"):
            raise InputError(
                f"the file does not begin with its model's name, {self.model}",
                where=str(file),
                fix="keep VLMEvalKit's layout: outputs/MODEL/MODEL_BENCHMARK_acc.csv",
            )
        return stem.removeprefix(f"{self.model}_")


def _begins(rest: str, name: str) -> bool:
    return f"{rest}_".startswith(f"{name}_")


def _is_table(file: Path) -> bool:
    return file.suffix[1:] in FORMATS and not NUMBERS.search(file.name)


def _have_both(measured: Sequence[str], longer: str, shorter: str) -> bool:
    """Whether two names have files of numbers with one ending: AI2D_TEST, AI2D_TEST_NO_MASK."""
    endings = (one.removeprefix(shorter) for one in measured if _begins(one, shorter))
    return any(f"{longer}{ending}" in measured for ending in endings)


def _cells(row: Row, *names: str) -> tuple[float | str, ...]:
    """A question and its answer, the same in every format: 3, "3" and "3.0" are one index."""
    cells = [row.get(name) for name in names]
    return tuple(str(cell) if (n := number_in(cell)) is None else n for cell in cells)


def _task(file: Path, outputs: _Outputs, task: str, read: list[Path]) -> TaskLog:
    read.append(file)
    notes: list[str] = []
    rows, source = _questions(outputs, task, notes)
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
        texts = [str(v) for k, v in row.items() if numbers.get(k) is None and _is_text(v)]
        beside = ", ".join(text for text in texts if text.lower() not in ALL_ROWS)
        several = f" [{beside}]" if beside and len(rows) > 1 else ""
        for name, value in numbers.items():
            if value is not None:
                is_whole = not several and name.lower() in WHOLE
                formula = None if is_whole else UNKNOWN
                if is_whole and name.lower() in BY_NAME:
                    formula = name.lower()  # the scores of the questions have another mean
                if task.startswith("POPE") and name == "Overall" and is_whole:
                    formula = "f1"
                yield Aggregate(
                    storable(f"{name}{several}"), value, True if is_whole else None, formula
                )


def _is_text(cell: Any) -> bool:
    """Whether a cell without a number says something; NaN does not."""
    if cell is None:
        return False
    try:
        float(cell)
    except (TypeError, ValueError, OverflowError):
        return True
    return False


def _questions(
    outputs: _Outputs, task: str, notes: list[str]
) -> tuple[list[Row] | None, Path | None]:
    """The rows of the benchmark's file that has a score for each question, and that file."""
    found, files = [], outputs.others(task)
    for file in filter(_is_table, files):
        rows = outputs.table(file)
        if rows and INDEX in rows[0] and any(name in rows[0] for name in ONE_SCORE):
            found.append((rows, file))
    if len(found) > 1:
        raise InputError(
            f"{len(found)} files have a score for each question of {task}: "
            + ", ".join(file.name for _, file in found),
            where=str(outputs.folder),
            fix="keep the file of the judge that made the numbers",
        )
    if found:
        return found[0]
    pickled = [file for file in files if file.suffix == ".pkl"]
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
