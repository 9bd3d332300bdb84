"""What a harness's finished logs say, in one form for all harnesses."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LMMS_EVAL, VLMEVALKIT = "lmms-eval", "vlmevalkit"
UNKNOWN = "unknown"  # the formula of a number that no rule of scores.py may explain


@dataclass(frozen=True)
class Aggregate:
    """One number that the harness reports for a task, in the harness's own unit.

    `formula` names the rule of scores.py that makes it of the questions' values, where the
    metric's name does not say it. `scale` is 1 if the log says that it is their plain mean.
    """

    metric: str
    value: float
    higher_is_better: bool | None = None
    formula: str | None = None
    scale: float | None = None


@dataclass(frozen=True)
class Asked:
    """One question with the harness's verdict on its answer.

    `values` are by metric: a number, or an object with `score`, with `prediction` and
    `ground_truth`, or with `scores` of a reference and of the model. `image` names the question's
    image, None if the log does not.
    """

    doc_id: str
    question_sha256: str
    image: str | None
    values: Mapping[str, Any]


@dataclass(frozen=True)
class TaskLog:
    """One task of a finished log. `asked` is None if the log holds no scores of single questions.

    `num_questions` is 0 where the log does not say it. `notes` are for the user.
    """

    task: str
    aggregates: tuple[Aggregate, ...]
    asked: tuple[Asked, ...] | None
    num_questions: int
    version: str | None = None
    task_hash: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class HarnessLogs:
    """The finished logs of one model; `files` are all files that were read.

    `told_apart` are names of tasks of which one begins another, where files are known by names.
    """

    harness: str
    model: str
    program_version: str | None
    tasks: tuple[TaskLog, ...]
    files: tuple[Path, ...] = field(default=())
    told_apart: tuple[str, ...] = ()


def question_sha256(*parts: Any) -> str:
    """A hash of what was asked and of its truth, to pair the questions of two logs."""
    text = json.dumps([str(part) for part in parts], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def number_of(value: Any) -> float | None:
    """A finite number or a truth value as a float; None for anything else, NaN among it."""
    if not isinstance(value, bool | int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number of more than 308 digits
        return None


def storable(text: Any) -> str:
    """The value as a text that a table can hold: halves of characters become U+FFFD."""
    return str(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
