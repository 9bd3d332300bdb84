"""LLaVA-Bench-in-the-Wild: a reference's and a model's answer rated together, from 1 to 10.

The score is the model's mean rating divided by the reference's, overall and by category: 1 is as
good as the reference. Both means are rounded to three decimals first, as in the benchmark's own
script and its published scores (338 / 522 is 64.75 %, published as 64.7).
"""

from pathlib import Path

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
    id_of,
    is_text,
    new_faults,
    read_json_lines,
    rows_by_id,
)
from perpo_pipeline.evaluate.judge.replies import parse_two_ratings
from perpo_pipeline.evaluate.judge.task import Measured, Question, Review, ShownImage, Task
from perpo_pipeline.evaluate.statistics import mean_interval, statistic_interval
from perpo_pipeline.json_files import Faults, Row

UNPARSED = [-1, -1]  # what LLaVA's own script writes
PREFIX = "llava_bench_"  # categories have it in reviews, not in the questions


def read_questions(
    questions: Path,
    context: Path,
    reference: Path,
    answers: Path,
    say: Say,
    images: ImageFolder | None = None,
    reading: Reading = DEFAULT_READING,
) -> list[Question]:
    """Reads the benchmark's own files; raises InputError with all faults.

    With `images` the judge sees the `image` of each question.

    Lines of the questions are `{"question_id", "image", "text", "category"}`, of the context
    `{"image", "caption"}` (one text or a list), of both answer files `{"question_id", "text"}`.
    """
    faults = new_faults()
    asked = rows_by_id(questions, "question_id", ["image", "text", "category"], faults)
    captions = _captions(context, faults)
    shown: dict[str, ShownImage | None] = {}
    for identity, row in asked.items():
        if images is not None:
            place = f"{asked.places[identity]}, question {identity!r}"
            shown[identity] = images.find(row.get("image"), place, faults)
        if row.get("image") not in captions:
            faults.add(
                str(context),
                f"no caption of image {row.get('image')!r}, which question {identity!r} is about "
                f"({asked.places[identity]})",
            )
    sides = []
    for path in (reference, answers):
        sides.append(rows_by_id(path, "question_id", ["text"], faults))
        check_answered(asked, sides[-1], path, faults, say)
    faults.check()
    of_reference, given = sides
    answered = find_answers({key: given[key]["text"] for key in asked}, reading, answers, say)
    found = []
    for identity, row in asked.items():
        answer = answered[identity]
        prompt = LLAVA_BENCH.fill(
            with_image=images is not None,
            question=row["text"],
            context=captions[row["image"]],
            first=of_reference[identity]["text"],
            second=answer.text,
        )
        category = PREFIX + row["category"].removeprefix(PREFIX)
        found.append(
            Question(identity, prompt, 0, (category,), shown.get(identity), answer.is_trimmed)
        )
    return found


def read_reviews(path: Path, say: Say) -> list[Review]:
    """Reviews as LLaVA's script writes them: `{"question_id", "category", "content", "tuple"}`.

    The scores come from `content`; a message reports where `tuple` differs. Raises InputError with
    all faults.
    """
    faults = new_faults()
    found: dict[str, Review] = {}
    disagreeing = []
    for place, row in read_json_lines(path, faults):
        identity = id_of(row, "question_id", place, faults)
        check_texts(row, ["category", "content"], place, faults)
        if identity in found:
            faults.add(place, f"question_id {identity!r} occurs twice")
        if identity is None or not isinstance(row.get("content"), str):
            continue
        if "tuple" in row and not _agrees(row):
            disagreeing.append(f"{place}: {row['tuple']!r}"[:200])
        found[identity] = Review(identity, row["content"], (str(row.get("category")),))
    faults.check()
    if disagreeing:
        say(
            f"judge llava-bench: in {len(disagreeing)} of {len(found)} reviews `tuple` differs "
            "from the first line of `content`; the scores come from `content`. For instance "
            f"{disagreeing[0]}"
        )
    return list(found.values())


def _captions(path: Path, faults: Faults) -> dict[str, str]:
    found = {}
    for image, row in rows_by_id(path, "image", [], faults).items():
        lines = row.get("caption")
        lines = [lines] if isinstance(lines, str) else lines
        if not isinstance(lines, list) or not all(isinstance(t, str) and is_text(t) for t in lines):
            faults.add(str(path), f"`caption` of {image!r} is neither text nor a list of texts")
            lines = []
        found[image] = "\n".join(lines)
    return found


def _agrees(row: Row) -> bool:
    return bool(row["tuple"] == (parse_two_ratings(row["content"]) or UNPARSED))


def measure(scores: npt.NDArray[np.float64]) -> Measured:
    """Metrics from ratings `(n, 1, 2)`: the reference's and the model's."""
    ratings = scores[:, 0, :]
    counts = np.insert(ratings, 2, 1.0, axis=1)
    return {
        "llava_bench_score": statistic_interval(counts, _score),
        "reference_rating": mean_interval(ratings[:, 0]),
        "model_rating": mean_interval(ratings[:, 1]),
    }


def _score(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The score from sums `(m, 3)` of both ratings and of the questions."""
    means = np.round(sums[:, :2] / sums[:, 2:], 3)
    score: npt.NDArray[np.float64] = means[:, 1] / means[:, 0]
    return score


LLAVA_BENCH = Task(metrics.LLAVA_BENCH, parse_two_ratings, measure)
