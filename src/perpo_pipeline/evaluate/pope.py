"""POPE: does the model see objects that are not there? Yes-or-no questions about COCO images.

The three files of JSON lines are joined by their keys, never by position: answers to questions by
`question_id`, questions to labels by (image, text). Source: Li et al., arXiv:2305.10355.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perpo_pipeline.evaluate.metrics import POPE, Bools, Floats
from perpo_pipeline.evaluate.prediction_files import mend_text, question_key, text_fault
from perpo_pipeline.evaluate.statistics import mean_interval, statistic_interval
from perpo_pipeline.evaluate.summarise import ALL
from perpo_pipeline.json_files import Faults, Row, read_json_lines

_NO = {"No", "not", "no"}


def says_yes(answer: str) -> bool:
    """How POPE reads an answer: no if a word before the first full stop is No, not or no, else yes.

    Commas are ignored. An answer with neither yes nor no counts as yes, as in POPE's own script.
    """
    words = answer.split(".", 1)[0].replace(",", "").split()
    return not _NO.intersection(words)


def read_pope(answers: Path, questions: Path, labels: Path) -> list[Row]:
    """Rows with prompt_id, image, question, is_yes (the truth), completion, says_yes, mended.

    Of a question's text only the first line counts: an instruction may follow it. Rows are in the
    order of the labels. Raises `InputError` that names every line that is broken, repeated, or
    without its counterpart in another file.
    """
    label_of = _index(labels, ("image", "text", "label"), _asked, _label_fault)
    question_of = _index(
        questions, ("question_id", "image", "text"), lambda row: row["question_id"]
    )
    answer_of = _index(answers, ("question_id", "text"), lambda row: row["question_id"])
    asked: dict[tuple[str, str], Any] = {}
    faults = Faults(questions)
    for number, row in question_of.items():
        key = _asked(row)
        place = f"question_id {number}"
        if key in asked:
            faults.add(place, f"asks the same as question_id {asked[key]}: {key}")
        elif key not in label_of:
            faults.add(place, f"no label in {labels} for {key}")
        asked.setdefault(key, number)
        if number not in answer_of:
            faults.add(place, f"no answer in {answers}")
    faults.check()
    faults = Faults(labels)
    for key in label_of:
        if key not in asked:
            faults.add(str(key), f"no question about it in {questions}")
    faults.check()
    faults = Faults(answers)
    for number in answer_of:
        if number not in question_of:
            faults.add(f"question_id {number}", f"not among the questions in {questions}")
    faults.check()
    return [_row(key, label, answer_of[asked[key]]["text"]) for key, label in label_of.items()]


def pope_metrics(rows: Sequence[Row], split: str = ALL) -> list[Row]:
    """METRICS rows: accuracy, precision, recall, f1 and yes_rate, with 95 % intervals over images.

    `rows` come from `read_pope`. Yes is the positive class. Precision and its interval are NaN if
    the model never says yes, recall if the truth is never yes, f1 if neither is ever yes.
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
            "dataset": ALL,
        }
        for name, (value, low, high) in found.items()
    ]


def _f1(sums: Floats) -> Floats:
    """F1 of each row (hits, said, true)."""
    return np.asarray(2 * sums[:, 0] / (sums[:, 1] + sums[:, 2]))


def _share(right: Bools, where: Bools, images: npt.NDArray[np.str_]) -> tuple[float, float, float]:
    if not where.any():
        return (float("nan"),) * 3
    return mean_interval(right[where].astype(float), clusters=images[where].tolist())


def _asked(row: Row) -> tuple[str, str]:
    """(image, question). Early copies of POPE misspell "image" as "imange"; later ones do not."""
    text = row["text"].split("\n", 1)[0].strip()
    return row["image"], text.replace("imange", "image")


def _row(key: tuple[str, str], label: Row, answer: str) -> Row:
    completion = mend_text(answer)
    return {
        "prompt_id": question_key(POPE, *key, label["label"]),
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
    """The file's rows by `key_of`; fields other than `keys` are ignored."""
    faults = Faults(path)
    found: dict[Any, Row] = {}
    for number, row in read_json_lines(path, faults):
        fault = next(_faults_of(row, keys), None) or check(row)
        if fault is None and key_of(row) in found:
            fault = f"{key_of(row)!r} is given twice"
        if fault is None:
            found[key_of(row)] = row
        else:
            faults.add(f"line {number}", fault)
    if not found and not faults.found:
        faults.add("line 1", "the file is empty")
    faults.check()
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
