"""MM-Vet: free-text answers graded from 0 to 1 against the expected ones, by capability."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.evaluate import metrics
from perpo_pipeline.evaluate.judge.images import ImageFolder
from perpo_pipeline.evaluate.judge.inputs import (
    DEFAULT_READING,
    Say,
    check_answered,
    check_texts,
    find_answers,
    is_text,
    new_faults,
    read_json,
)
from perpo_pipeline.evaluate.judge.replies import parse_grade
from perpo_pipeline.evaluate.judge.task import Measured, Question, ShownImage, Task
from perpo_pipeline.evaluate.statistics import mean_interval
from perpo_pipeline.json_files import Faults


def read_questions(
    dataset: Path,
    answers: Path,
    say: Say,
    images: ImageFolder | None = None,
    reading: Reading = DEFAULT_READING,
) -> list[Question]:
    """Reads the benchmark's own file and the model's answers; raises InputError with all faults.

    `dataset` holds `{id: {"question", "answer", "capability": [...]}}`, `answers` `{id: answer}`.
    With `images` the judge sees the image of each question, `imagename`.
    """
    faults = new_faults()
    asked, answered = read_json(dataset, dict, faults), read_json(answers, dict, faults)
    shown: dict[str, ShownImage | None] = {}
    for identity, row in asked.items():
        place = f"{dataset} {identity!r}"
        _check(identity, row, place, faults)
        if images is not None and isinstance(row, dict):
            shown[identity] = images.find(row.get("imagename"), place, faults)
    check_texts(answered, answered, str(answers), faults)
    check_answered(asked, answered, answers, faults, say)
    faults.check()
    found = find_answers({key: answered[key] for key in asked}, reading, answers, say)
    return [
        Question(
            identity,
            MM_VET.fill(
                with_image=images is not None,
                question=row["question"],
                truth=row["answer"],
                answer=found[identity].text,
            ),
            groups=tuple(dict.fromkeys(row["capability"])),
            image=shown.get(identity),
            is_trimmed=found[identity].is_trimmed,
        )
        for identity, row in asked.items()
    ]


def measure(scores: npt.NDArray[np.float64]) -> Measured:
    """Metrics from grades `(n, 1, 1)`."""
    return {"mm_vet_score": mean_interval(scores[:, 0, 0])}


MM_VET = Task(metrics.MM_VET, parse_grade, measure)


def _check(identity: str, row: Any, place: str, faults: Faults) -> None:
    if not isinstance(row, dict):
        faults.add(place, "not a JSON object")
        return
    if not is_text(identity):
        faults.add(place, "the id holds half a character (a lone surrogate)")
    check_texts(row, ["question", "answer"], place, faults)
    names = row.get("capability")
    if not isinstance(names, list) or not all(isinstance(n, str) and is_text(n) for n in names):
        faults.add(place, "`capability` is not a list of names")
