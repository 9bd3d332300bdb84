"""MM-Vet: free answers graded from 0 to 1 against the expected one, by capability."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perpo_pipeline.evaluate.judge.inputs import (
    Faults,
    Say,
    check_answered,
    check_texts,
    is_text,
    raise_faults,
    read_json,
)
from perpo_pipeline.evaluate.judge.replies import parse_grade
from perpo_pipeline.evaluate.judge.task import Measured, Question, Task
from perpo_pipeline.evaluate.statistics import mean_interval


def read_questions(dataset: Path, answers: Path, say: Say) -> list[Question]:
    """The benchmark's own files: `{id: {"question", "answer", "capability": [...]}}` and
    `{id: answer}`. Raises InputError with all faults.
    """
    faults: Faults = []
    asked, answered = read_json(dataset, dict, faults), read_json(answers, dict, faults)
    for identity, row in asked.items():
        _check(identity, row, f"{dataset} {identity!r}", faults)
    check_texts(answered, answered, str(answers), faults)
    check_answered(asked, answered, answers, faults, say)
    raise_faults(faults)
    return [
        Question(
            identity,
            MM_VET.fill(question=row["question"], truth=row["answer"], answer=answered[identity]),
            groups=tuple(dict.fromkeys(row["capability"])),
        )
        for identity, row in asked.items()
    ]


def measure(scores: npt.NDArray[np.float64]) -> Measured:
    """Metrics of `(n, 1, 1)` grades."""
    return {"mm_vet_score": mean_interval(scores[:, 0, 0])}


MM_VET = Task("mm-vet", parse_grade, measure)


def _check(identity: str, row: Any, place: str, faults: Faults) -> None:
    if not isinstance(row, dict):
        faults.append(f"{place}: not a JSON object")
        return
    if not is_text(identity):
        faults.append(f"{place}: the id holds a lone surrogate, which is no text")
    check_texts(row, ["question", "answer"], place, faults)
    names = row.get("capability")
    if not isinstance(names, list) or not all(isinstance(n, str) and is_text(n) for n in names):
        faults.append(f"{place}: `capability` is not a list of names")
