"""POPE: does the model see objects that are not there? Yes-or-no questions about COCO images.

Three files of JSON lines, joined by what they say and never by position: answers by `question_id`
to questions, questions by (image, text) to labels. Source: Li et al., arXiv:2305.10355.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perpo_pipeline.evaluate.prediction_files import (
    mend_text,
    question_key,
    raise_faults,
    text_fault,
    told_to,
)
from perpo_pipeline.evaluate.statistics import mean_interval, statistic_interval
from perpo_pipeline.json_files import json_lines, read_text

Row = dict[str, Any]
Floats = npt.NDArray[np.float64]

TASK = "pope"
_NO = {"No", "not", "no"}


def says_yes(answer: str) -> bool:
    """How POPE reads an answer: no if a word before the first full stop is No, not or no, else yes.

    Commas do not count. An answer that says neither is a yes, as in POPE's own script.
    """
    words = answer.split(".", 1)[0].replace(",", "").split()
    return not _NO.intersection(words)


def read_pope(answers: Path, questions: Path, labels: Path) -> list[Row]:
    """Rows of prompt_id, image, question, is_yes (the truth), completion, says_yes, mended (bool).

    The question's text counts up to the first line break: what follows is an instruction. Rows are
    in the order of the labels. Raises `InputError` naming every line that is broken, given twice,
    or without its counterpart in another file.
    """
    label_of = _index(labels, ("image", "text", "label"), _asked, _label_fault)
    question_of = _index(
        questions, ("question_id", "image", "text"), lambda row: row["question_id"]
    )
    answer_of = _index(answers, ("question_id", "text"), lambda row: row["question_id"])
    asked: dict[tuple[str, str], Any] = {}
    faults = []
    for number, row in question_of.items():
        key = _asked(row)
        if key in asked:
            faults.append(f"question_id {number} asks the same as {asked[key]}: {key}")
        elif key not in label_of:
            faults.append(f"question_id {number} has no label: {key}")
        asked.setdefault(key, number)
        if number not in answer_of:
            faults.append(f"question_id {number} has no answer in {answers}")
    raise_faults(questions, faults)
    raise_faults(labels, [f"no question asks {key}" for key in label_of if key not in asked])
    raise_faults(
        answers,
        [
            f"question_id {number} is not among the questions"
            for number in answer_of
            if number not in question_of
        ],
    )
    return [_row(key, label, answer_of[asked[key]]["text"]) for key, label in label_of.items()]


def pope_metrics(rows: Sequence[Row], split: str = "all") -> list[Row]:
    """METRICS rows: accuracy, precision, recall, f1 and yes_rate, with 95 % intervals over images.

    `rows` as `read_pope` gives them. Yes is the positive class. Precision is NaN, with its
    interval, where the model never says yes, recall where the truth never does, f1 where neither.
    """
    says = np.array([row["says_yes"] for row in rows], dtype=bool)
    true = np.array([row["is_yes"] for row in rows], dtype=bool)
    images = np.array([row["image"] for row in rows])
    everywhere = np.ones(len(rows), dtype=bool)
    found = {
        "accuracy": _share(says == true, everywhere, images),
        "precision": _share(true, says, images),
        "recall": _share(says, true, images),
        "f1": statistic_interval(np.stack([says & true, says, true], axis=1), _f1, images.tolist()),
        "yes_rate": _share(says, everywhere, images),
    }
    counted = {"precision": int(says.sum()), "recall": int(true.sum())}
    return [
        {
            "name": name,
            "value": value,
            "low": low,
            "high": high,
            "n": counted.get(name, len(rows)),
            "split": split,
            "dataset": "all",
        }
        for name, (value, low, high) in found.items()
    ]


def _f1(sums: Floats) -> Floats:
    """F1 of (hits, said, true), each row."""
    return np.asarray(2 * sums[:, 0] / (sums[:, 1] + sums[:, 2]))


def _share(
    right: npt.NDArray[np.bool_], where: npt.NDArray[np.bool_], images: npt.NDArray[np.str_]
) -> tuple[float, float, float]:
    if not where.any():
        return (float("nan"),) * 3
    return mean_interval(right[where].astype(float), clusters=images[where].tolist())


def _number(row: Row) -> Any:
    return row["question_id"]


def _asked(row: Row) -> tuple[str, str]:
    """What is asked about which image. Early copies of POPE write "imange", later ones do not."""
    text = row["text"].split("\n", 1)[0].strip()
    return row["image"], text.replace("imange", "image")


def _row(key: tuple[str, str], label: Row, answer: str) -> Row:
    completion = mend_text(answer)
    return {
        "prompt_id": question_key(TASK, *key, label["label"]),
        "image": key[0],
        "question": key[1],
        "is_yes": label["label"] == "yes",
        "completion": completion,
        "says_yes": says_yes(completion),
        "mended": completion != answer,
    }


def _label_fault(row: Row) -> str | None:
    known = row["label"] in ("yes", "no")
    return None if known else f"`label` is {row['label']!r}, neither 'yes' nor 'no'"


def _index(path: Path, keys: Sequence[str], key_of: Any, check: Any = lambda row: None) -> Any:
    """The file's rows by their key; other keys than `keys` are left alone."""
    faults: list[str] = []
    found: dict[Any, Row] = {}
    for number, row in json_lines(read_text(path), told_to(faults)):
        fault = next(_faults_of(row, keys), None) or check(row)
        if fault is None and key_of(row) in found:
            fault = f"{key_of(row)!r} is given twice"
        if fault is None:
            found[key_of(row)] = row
        else:
            faults.append(f"line {number}: {fault}")
    if not found and not faults:
        faults.append("the file is empty")
    raise_faults(path, faults)
    return found


def _faults_of(row: Row, keys: Sequence[str]) -> Iterator[str]:
    for key in keys:
        if row.get(key) is None:
            yield f"`{key}` is missing"
    number = row.get("question_id")
    if "question_id" in keys and (not isinstance(number, str | int) or isinstance(number, bool)):
        yield f"`question_id` is neither text nor a whole number: {number!r}"
    texts = [key for key in keys if key not in ("question_id", "text")]
    if fault := text_fault(row, texts):
        yield fault
    if not isinstance(row["text"], str):
        yield f"`text` is not text: {row['text']!r}"
