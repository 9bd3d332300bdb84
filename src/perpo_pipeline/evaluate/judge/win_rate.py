"""Win rate: two models' answers to the same questions, compared in both orders.

Each question is asked twice, once with A's answer first and once with B's, so that a judge's
preference for a position cancels out. A reply gives A 1 point if it chooses A's answer, 1/2 if it
chooses neither, 0 if it chooses B's; a question's points are the mean of its two replies (PerPO,
arXiv:2502.04371, appendix A.2, asks once). A question with an unparsed reply is left out.
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
    new_faults,
    rows_by_id,
)
from perpo_pipeline.evaluate.judge.replies import parse_comparison
from perpo_pipeline.evaluate.judge.task import ALL, Measured, Question, ShownImage, Task
from perpo_pipeline.evaluate.statistics import mean_interval

A_FIRST, B_FIRST = 0, 1
ASPECTS = ("response_accuracy", "instruction_adherence", "hallucination_reduction")


def read_questions(
    questions: Path,
    answers: Path,
    answers_b: Path,
    say: Say,
    images: ImageFolder | None = None,
    reading: Reading = DEFAULT_READING,
) -> list[Question]:
    """Both orders of every question.

    Lines of `questions` are `{"question_id", "text"}`, optionally with `reference` (what the image
    shows) and `dataset`, and with `image` (a file in `images`) if the judge sees it; lines of the
    answers are `{"question_id", "text"}`. Raises InputError with all faults.
    """
    faults = new_faults()
    asked = rows_by_id(questions, "question_id", ["text"], faults)
    shown: dict[str, ShownImage | None] = {}
    for identity, row in asked.items():
        given = [name for name in ("reference", "dataset") if row.get(name) is not None]
        place = f"{asked.places[identity]}, question {identity!r}"
        check_texts(row, given, place, faults)
        if row.get("dataset") == ALL:
            faults.add(place, f"`dataset` is {ALL!r}, the name for all datasets together")
        if images is not None:
            shown[identity] = images.find(row.get("image"), place, faults)
    sides = []
    for path in (answers, answers_b):
        sides.append(rows_by_id(path, "question_id", ["text"], faults))
        check_answered(asked, sides[-1], path, faults, say)
    faults.check()
    without = sum(not row.get("reference") for row in asked.values())
    if without and images is None:
        say(
            f"judge win-rate: {without} of {len(asked)} questions have no `reference`: the judge "
            "does not see the image and can only guess what is right (--with-image shows it)"
        )
    both = [
        find_answers({key: side[key]["text"] for key in asked}, reading, path, say)
        for path, side in zip((answers, answers_b), sides, strict=True)
    ]
    found = []
    for identity, row in asked.items():
        first, second = (side[identity] for side in both)
        is_trimmed = first.is_trimmed or second.is_trimmed
        known = {"question": row["text"], "reference": row.get("reference") or ""}
        groups = (row["dataset"],) if row.get("dataset") else ()
        for order, pair in ((A_FIRST, (first, second)), (B_FIRST, (second, first))):
            prompt = WIN_RATE.fill(
                with_image=images is not None, **known, first=pair[0].text, second=pair[1].text
            )
            found.append(Question(identity, prompt, order, groups, shown.get(identity), is_trimmed))
    return found


def measure(scores: npt.NDArray[np.float64]) -> Measured:
    """Metrics from scores `(n, 2, 7)` of `parse_comparison`: with A first, then with B first.

    `win_rate` is A's against B; `tie_rate` is the share of replies that choose neither;
    `order_disagreement` is the share of questions whose two replies choose different models; the
    others are mean ratings, 1 to 5, of each model over both orders.
    """
    choice = scores[:, :, 6]
    points_a_first = np.choose(choice[:, A_FIRST].astype(int), [0.5, 1.0, 0.0])
    points_b_first = np.choose(choice[:, B_FIRST].astype(int), [0.5, 0.0, 1.0])
    found = {
        "win_rate": mean_interval((points_a_first + points_b_first) / 2),
        "tie_rate": mean_interval((choice == 0).mean(axis=1)),
        "order_disagreement": mean_interval((points_a_first != points_b_first).astype(float)),
    }
    of_a = (scores[:, A_FIRST, :3] + scores[:, B_FIRST, 3:6]) / 2
    of_b = (scores[:, A_FIRST, 3:6] + scores[:, B_FIRST, :3]) / 2
    for model, ratings in (("a", of_a), ("b", of_b)):
        for place, aspect in enumerate(ASPECTS):
            found[f"{aspect}_{model}"] = mean_interval(ratings[:, place])
    return found


WIN_RATE = Task(metrics.WIN_RATE, parse_comparison, measure, orders=2)
