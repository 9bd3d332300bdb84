"""MMHal-Bench: answers rated from 0 to 6; an answer below 3 makes something up.

Questions come in rounds of eight kinds, so a question's position gives its kind. A reply without
exactly one rating is unparsed and left out; the benchmark's own script counts it as 0.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.evaluate import metrics
from perpo_pipeline.evaluate.judge.images import ImageFolder
from perpo_pipeline.evaluate.judge.inputs import (
    DEFAULT_READING,
    ModelAnswer,
    Say,
    check_texts,
    find_answers,
    is_text,
    new_faults,
    read_json,
)
from perpo_pipeline.evaluate.judge.replies import parse_rating
from perpo_pipeline.evaluate.judge.task import Measured, Question, Review, ShownImage, Task
from perpo_pipeline.evaluate.statistics import mean_interval
from perpo_pipeline.json_files import Faults, Row

KINDS = (
    "attribute",
    "adversarial",
    "comparison",
    "counting",
    "relation",
    "environment",
    "holistic",
    "other",
)
NUM_QUESTIONS = 96
HALLUCINATES_BELOW = 3
TEXTS = ("question_type", "question", "gt_answer", "model_answer")


def read_questions(
    responses: Path,
    say: Say,
    images: ImageFolder | None = None,
    reading: Reading = DEFAULT_READING,
) -> list[Question]:
    """The benchmark's list, in its own order, with every `model_answer` filled.

    With `images` the judge sees the image of each entry: its file is named as the end of
    `image_src`, as in the benchmark's own folder of images. Raises InputError with all faults.
    """
    faults = new_faults()
    rows = read_json(responses, list, faults)
    shown: dict[int, ShownImage | None] = {}
    for index, row in enumerate(rows):
        place = f"{responses} entry {index}"
        _check(row, index, place, faults)
        if images is not None and isinstance(row, dict):
            shown[index] = images.find(_image_name(row), place, faults)
    faults.check()
    _print_number(len(rows), responses, say)
    completions = {str(index): row["model_answer"] for index, row in enumerate(rows)}
    answers = find_answers(completions, reading, responses, say)
    return [
        _question(row, index, answers[str(index)], shown.get(index))
        for index, row in enumerate(rows)
    ]


def read_reviews(path: Path, say: Say) -> list[Review]:
    """A list of replies in the benchmark's order: text, `{"content"}`, or OpenAI's raw answers.

    Raises InputError with all faults.
    """
    faults = new_faults()
    replies = [
        _reply(entry, f"{path} entry {index}", faults)
        for index, entry in enumerate(read_json(path, list, faults))
    ]
    faults.check()
    _print_number(len(replies), path, say)
    return [Review(str(index), reply, (_kind(index),)) for index, reply in enumerate(replies)]


def measure(scores: npt.NDArray[np.float64]) -> Measured:
    """Metrics from ratings `(n, 1, 1)`."""
    ratings = scores[:, 0, 0]
    return {
        "mmhal_score": mean_interval(ratings),
        "hallucination_rate": mean_interval((ratings < HALLUCINATES_BELOW).astype(float)),
    }


MMHAL = Task(metrics.MMHAL, parse_rating, measure)


def _kind(index: int) -> str:
    return KINDS[index % len(KINDS)]


def _check(row: Any, index: int, place: str, faults: Faults) -> None:
    if not isinstance(row, dict):
        faults.add(place, "not a JSON object")
        return
    check_texts(row, TEXTS, place, faults)
    objects = row.get("image_content")
    if not isinstance(objects, list) or not all(isinstance(o, str) and is_text(o) for o in objects):
        faults.add(place, "`image_content` is not a list of texts")
    if row.get("question_type") != _kind(index):
        faults.add(
            place,
            f"`question_type` is {row.get('question_type')!r}; in the benchmark's order it is "
            f"{_kind(index)!r}",
        )
    if row.get("model_answer") == "":
        faults.add(place, "`model_answer` is empty: the model was not asked")


def _image_name(row: Row) -> object:
    """The last part of `image_src`, a URL or a path."""
    source = row.get("image_src")
    return source.rpartition("/")[2] if isinstance(source, str) else source


def _question(row: Row, index: int, answer: ModelAnswer, image: ShownImage | None) -> Question:
    prompt = MMHAL.fill(
        with_image=image is not None,
        objects=", ".join(row["image_content"]),
        question=row["question"],
        truth=row["gt_answer"],
        answer=answer.text,
    )
    return Question(str(index), prompt, 0, (_kind(index),), image, answer.is_trimmed)


def _reply(entry: Any, place: str, faults: Faults) -> str:
    text = entry
    if isinstance(entry, dict) and "choices" in entry:
        choices = entry["choices"]
        one = isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict)
        text = choices[0].get("message") if one else None
    if isinstance(text, dict):
        text = text.get("content")
    if isinstance(text, str) and is_text(text):
        return text
    faults.add(
        place, "neither text, nor an object with `content` or with `choices[0].message.content`"
    )
    return ""


def _print_number(number: int, path: Path, say: Say) -> None:
    if number != NUM_QUESTIONS:
        say(f"judge mmhal: {number} entries in {path}; MMHal-Bench has {NUM_QUESTIONS}")
