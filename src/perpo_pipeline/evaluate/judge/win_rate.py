"""Win rate: two models' answers to the same questions, compared in both orders.

A question is asked twice, with A's answer first and with B's first, so that a judge's liking for a
place cancels out. A reply gives A 1 point if it chooses A's answer, 1/2 if neither, 0 if B's; the
question's points are the mean of its two replies (PerPO, arXiv:2502.04371, appendix A.2, asks
once). Questions of which either reply is unparsed are left out.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from perpo_pipeline.evaluate.judge.inputs import (
    Faults,
    Say,
    check_answered,
    check_texts,
    raise_faults,
    rows_by_id,
)
from perpo_pipeline.evaluate.judge.replies import parse_comparison
from perpo_pipeline.evaluate.judge.task import ALL, Measured, Question, Task
from perpo_pipeline.evaluate.statistics import mean_interval

A_FIRST, B_FIRST = 0, 1
ASPECTS = ("response_accuracy", "instruction_adherence", "hallucination_reduction")


def read_questions(questions: Path, answers: Path, answers_b: Path, say: Say) -> list[Question]:
    """Both orders of every question.

    `questions` has lines `{"question_id", "text"}`, with `reference` (what is true of the image)
    and `dataset` where there are such; the answers `{"question_id", "text"}`. Raises InputError
    with all faults.
    """
    faults: Faults = []
    asked = rows_by_id(questions, "question_id", ["text"], faults)
    for identity, row in asked.items():
        given = [name for name in ("reference", "dataset") if row.get(name) is not None]
        place = f"{questions} question {identity!r}"
        check_texts(row, given, place, faults)
        if row.get("dataset") == ALL:
            faults.append(f"{place}: `dataset` is {ALL!r}, which is the name of all together")
    sides = []
    for path in (answers, answers_b):
        sides.append(rows_by_id(path, "question_id", ["text"], faults))
        check_answered(asked, sides[-1], path, faults, say)
    raise_faults(faults)
    without = sum(not row.get("reference") for row in asked.values())
    if without:
        say(
            f"judge win-rate: {without} of {len(asked)} questions have no `reference`: the judge, "
            "which is not shown the image, can only guess what is right"
        )
    found = []
    for identity, row in asked.items():
        first, second = (side[identity]["text"] for side in sides)
        known = {"question": row["text"], "reference": row.get("reference") or ""}
        groups = (row["dataset"],) if row.get("dataset") else ()
        for order, pair in ((A_FIRST, (first, second)), (B_FIRST, (second, first))):
            prompt = WIN_RATE.fill(**known, first=pair[0], second=pair[1])
            found.append(Question(identity, prompt, order, groups))
    return found


def measure(scores: npt.NDArray[np.float64]) -> Measured:
    """Metrics of `(n, 2, 7)` scores, as `parse_comparison` has them: A first, then B first.

    `win_rate` is A's over B; `tie_rate` the share of replies that choose neither;
    `order_disagreement` the share of questions whose two replies do not choose the same model;
    the others are mean ratings, 1 to 5, of each model over both orders.
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


WIN_RATE = Task("win-rate", parse_comparison, measure, orders=2)
