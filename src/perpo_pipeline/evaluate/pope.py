"""POPE: does the model see objects that are not there? Yes-or-no questions about images.

An answer, without its thoughts, is read twice: as POPE's own script does, for the official figures,
and by its first yes or no. pope_files.py reads the files. Source: Li et al., arXiv:2305.10355.
"""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from perpo_pipeline.evaluate.metric import PERCENT, Bools, Floats
from perpo_pipeline.evaluate.statistics import mean_interval, statistic_interval
from perpo_pipeline.evaluate.summarise import ALL
from perpo_pipeline.json_files import Row

YES, NO = "yes", "no"
_NO = {"No", "not", "no"}
_FIRST = re.compile(r"(?<![^\W_])(yes|no)(?![^\W_])", re.IGNORECASE)


def says_yes(answer: str) -> bool:
    """How POPE reads an answer: no if a word before the first full stop is No, not or no, else yes.

    Commas are ignored, and words end only at spaces. An answer with neither yes nor no counts as
    yes, as in POPE's own script.
    """
    words = answer.split(".", 1)[0].replace(",", "").split(" ")
    return not _NO.intersection(words)


def read_answer(answer: str) -> str | None:
    """YES or NO by the first of these words, in any case; None for an answer that says neither.

    An answer without these words that POPE reads as no ("There is not.") is a no here, too.
    """
    if first := _FIRST.search(answer):
        return first[1].lower()
    return None if says_yes(answer) else NO


def pope_metrics(rows: Sequence[Row], split: str = ALL) -> list[Row]:
    """METRICS rows of all questions together and, if they have several categories, of each.

    `rows` come from `read_pope`. accuracy, precision, recall, f1 and yes_rate are POPE's own, with
    yes as the positive class. neither_rate is the share of answers in which `read_answer` finds
    neither yes nor no; accuracy_as_read and f1_as_read follow from what it finds, and there such an
    answer is wrong. A completion without an answer is neither, and wrong everywhere. All have 95 %
    intervals over images.

    Precision and its interval are NaN if the model never says yes, recall if the truth is never
    yes, f1 if neither is ever yes.
    """
    categories = list(dict.fromkeys(row["category"] for row in rows))
    found = _measure(rows, split, ALL)
    if len(categories) > 1:
        for category in categories:
            found += _measure([r for r in rows if r["category"] == category], split, category)
    return found


def unread_note(rows: Sequence[Row]) -> str | None:
    """What POPE's script reads otherwise than `read_answer`, with figures; None if nothing is."""
    as_no = sum(row["says_yes"] and row["reads"] == NO for row in rows)
    as_yes = sum(not row["says_yes"] and row["reads"] == YES for row in rows)
    neither = [r["completion"] for r in rows if r["reads"] is None and r["is_answered"]]
    missing = sum(not row["is_answered"] for row in rows)
    if not (as_no or as_yes or neither or missing):
        return None
    found = {row["name"]: row["value"] for row in _measure(rows, ALL, ALL)}
    example = f" (for instance {neither[0][:60]!r})" if neither else ""
    figures = "; ".join(
        f"{name} {PERCENT.number(found[name])} % -> {PERCENT.number(found[f'{name}_as_read'])} %"
        for name in ("accuracy", "f1")
    )
    cut = f". {missing} end within a thought and are wrong" if missing else ""
    return (
        f"of {len(rows)} answers POPE's script counts {as_no} as yes that say no, {as_yes} as no "
        f"that say yes, and {len(neither)} say neither{example}{cut}. accuracy and f1 are as its "
        f"script gives them; read by their first yes or no, with neither as wrong: {figures}"
    )


def _measure(rows: Sequence[Row], split: str, dataset: str) -> list[Row]:
    says = np.array([row["says_yes"] for row in rows], dtype=bool)
    true = np.array([row["is_yes"] for row in rows], dtype=bool)
    is_answered = np.array([row["is_answered"] for row in rows], dtype=bool)
    reads_yes = np.array([row["reads"] == YES for row in rows], dtype=bool)
    is_read = np.array([row["reads"] is not None for row in rows], dtype=bool)
    images = np.array([row["image"] for row in rows])
    everywhere = np.ones(len(rows), dtype=bool)
    found = {
        "accuracy": _share((says == true) & is_answered, everywhere, images),
        "precision": _share(true, says, images),
        "recall": _share(says, true, images),
        "f1": _f1(says, true, images),
        "yes_rate": _share(says, everywhere, images),
        "neither_rate": _share(~is_read, everywhere, images),
        "accuracy_as_read": _share((reads_yes == true) & is_read, everywhere, images),
        "f1_as_read": _f1(reads_yes, true, images),
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
            "dataset": dataset,
        }
        for name, (value, low, high) in found.items()
    ]


def _f1(says: Bools, true: Bools, images: npt.NDArray[np.str_]) -> tuple[float, float, float]:
    counts = np.stack([says & true, says, true], axis=1)
    return statistic_interval(counts, _f1_of_sums, images.tolist())


def _f1_of_sums(sums: Floats) -> Floats:
    """F1 of each row (hits, said, true)."""
    return np.asarray(2 * sums[:, 0] / (sums[:, 1] + sums[:, 2]))


def _share(right: Bools, where: Bools, images: npt.NDArray[np.str_]) -> tuple[float, float, float]:
    if not where.any():
        return (float("nan"),) * 3
    return mean_interval(right[where].astype(float), clusters=images[where].tolist())
