"""Intervals for a harness's numbers, from the scores of its questions.

A number gets an interval only if one of the rules here makes exactly this number of the questions'
values: the mean of the scores (as they are, or times 100), precision, recall, F1 and the share of
"yes" of yes-or-no answers, and the model's mean rating over the reference's. Other numbers (sums of
sub-scores, means over categories) have no interval. The first rule that fits the words of the
metric's name and the questions' values decides: an F1 of each question has a mean, and so has a
number that is named `F1Score` where the counts do not make it.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from perpo_pipeline.evaluate.harness.logs import (
    UNKNOWN,
    Aggregate,
    Asked,
    TaskLog,
    number_of,
)
from perpo_pipeline.evaluate.statistics import mean_interval, statistic_interval

Floats = npt.NDArray[np.float64]
Row = dict[str, Any]

SCALES = (1.0, 100.0)
EXACT = 1e-6
ROUNDED = 0.0501  # VLMEvalKit rounds LLaVA-Bench's ratio to one decimal
LEFT_OUT = -999  # what lmms-eval writes for questions of another category


@dataclass(frozen=True)
class Explained:
    """How a number follows from m questions: counts `(m, k)`, and the rule on their sums.

    `value = scale * rule(sums)`; `scores` `(m,)` are set where the number is their mean, times the
    scale. `asked` are the questions, in the order of the counts. The scale of a number that is 0 is
    unknown (None) where the log does not say it.
    """

    asked: Sequence[Asked]
    counts: Floats
    rule: Callable[[Floats], Floats]
    scale: float | None
    scores: Floats | None = None


def measure_task(harness: str, log: TaskLog) -> tuple[list[Row], list[Row], list[str]]:
    """METRICS rows and HARNESS rows of one task, and the metrics that have no interval.

    Scores are in the metric's own unit. Questions about one image are drawn together where the log
    names the image of every question.
    """
    metrics, scores, without = [], [], []
    for aggregate in log.aggregates:
        explained = None if log.asked is None else explain(aggregate, log.asked)
        name = f"{log.task}/{aggregate.metric}"
        low = high = math.nan
        n = log.num_questions
        if explained is not None:
            low, high = _interval(explained)
            n = len(explained.asked)
            scores += _score_rows(log.task, aggregate.metric, explained)
        if math.isnan(low):
            without.append(name)
        row = {"name": name, "value": aggregate.value, "low": low, "high": high, "n": n}
        metrics.append(row | {"split": harness, "dataset": log.task})
    return metrics, scores, without


def explain(aggregate: Aggregate, asked: Sequence[Asked]) -> Explained | None:
    """The rule that makes the number of the questions' values; None if no rule does."""
    metric = aggregate.metric.partition(",")[0]
    pairs = [(one, one.values[metric]) for one in asked if one.values.get(metric) is not None]
    if not pairs or aggregate.formula == UNKNOWN:
        return None
    name = aggregate.formula or metric.lower()
    for candidate in _candidates(name, pairs, is_stated=aggregate.formula is not None):
        made = float(candidate.rule(candidate.counts.sum(axis=0)[None])[0])
        for scale in SCALES if aggregate.scale is None else (aggregate.scale,):
            near = ROUNDED if candidate.rule is _ratio else EXACT * max(1.0, abs(scale * made))
            if abs(scale * made - aggregate.value) <= near:
                known = None if made == 0 and aggregate.scale is None else scale
                return replace(candidate, scale=known)
    return None


def _candidates(
    name: str, pairs: Sequence[tuple[Asked, Any]], *, is_stated: bool
) -> list[Explained]:
    """The rules that the name and the values allow; `is_stated`: no other than the named one."""
    by_name = {"f1": _f1, "precision": _precision, "recall": _recall, "yes": _yes_share}
    words = re.findall("[a-z0-9]+", name)
    if wanted := [rule for word, rule in by_name.items() if word in words]:
        if (made := _yes_or_no(pairs, wanted[0])) is not None:
            return [made]
        if is_stated:
            return []
    # "F1Score" is one word; of "yes" the same would read `eyes_acc`.
    inside = [rule for word, rule in by_name.items() if word in name and word != "yes"]
    counted = [_yes_or_no(pairs, rule) for rule in inside[:1]]
    return [made for made in (*counted, _rated(pairs), _mean(pairs)) if made is not None]


def _mean(pairs: Sequence[tuple[Asked, Any]]) -> Explained | None:
    values = [number_of(v.get("score") if isinstance(v, dict) else v) for _, v in pairs]
    if any(value is None or not math.isfinite(value) for value in values):
        return None
    scores = np.array(values, dtype=np.float64)
    counts = np.stack([scores, np.ones_like(scores)], axis=1)
    return Explained([one for one, _ in pairs], counts, _share, 1.0, scores)


def _yes_or_no(
    pairs: Sequence[tuple[Asked, Any]], rule: Callable[[Floats], Floats]
) -> Explained | None:
    """Counts of yes answers that are right, that are wrong, of missed yes, and of all."""
    rows = []
    for _, value in pairs:
        if not isinstance(value, dict) or not {"prediction", "ground_truth"} <= set(value):
            return None
        says, is_yes = (
            str(value[key]).strip().lower() == "yes" for key in ("prediction", "ground_truth")
        )
        rows.append([says and is_yes, says and not is_yes, is_yes and not says, True])
    return Explained([one for one, _ in pairs], np.array(rows, dtype=np.float64), rule, 1.0)


def _rated(pairs: Sequence[tuple[Asked, Any]]) -> Explained | None:
    """Ratings `[reference, model]`; questions that lmms-eval marks as another category's go."""
    kept, rows = [], []
    for one, value in pairs:
        ratings = value.get("scores") if isinstance(value, dict) else None
        if not isinstance(ratings, list) or len(ratings) != 2:
            return None
        numbers = [number_of(rating) for rating in ratings]
        if LEFT_OUT in numbers:
            continue
        if any(number is None or not math.isfinite(number) for number in numbers):
            return None
        kept.append(one)
        rows.append([*numbers, 1.0])
    return Explained(kept, np.array(rows, dtype=np.float64), _ratio, 1.0) if kept else None


def _interval(explained: Explained) -> tuple[float, float]:
    if explained.scale is None:
        return math.nan, math.nan
    images = [one.image for one in explained.asked]
    clusters = None if any(image is None for image in images) else images
    if explained.scores is not None:
        _, low, high = mean_interval(explained.scores, clusters)
    else:
        _, low, high = statistic_interval(explained.counts, explained.rule, clusters)
    return explained.scale * low, explained.scale * high


def _score_rows(task: str, metric: str, explained: Explained) -> list[Row]:
    if explained.scores is None or (explained.scale is None and explained.scores.any()):
        return []
    scale = 1.0 if explained.scale is None else explained.scale  # all scores are 0 then
    return [
        {
            "task": task,
            "metric": metric,
            "doc_id": one.doc_id,
            "question_sha256": one.question_sha256,
            "image": one.image,
            "score": scale * float(score),
        }
        for one, score in zip(explained.asked, explained.scores, strict=True)
    ]


def _share(sums: Floats) -> Floats:
    return sums[:, 0] / sums[:, 1]


def _ratio(sums: Floats) -> Floats:
    """The model's mean rating over the reference's, both rounded as LLaVA-Bench's script does."""
    means = np.round(sums[:, :2] / sums[:, 2:], 3)
    return _divided(means[:, 1], means[:, 0])


def _precision(sums: Floats) -> Floats:
    return _divided(sums[:, 0], sums[:, 0] + sums[:, 1])


def _recall(sums: Floats) -> Floats:
    return _divided(sums[:, 0], sums[:, 0] + sums[:, 2])


def _f1(sums: Floats) -> Floats:
    return _divided(2 * sums[:, 0], 2 * sums[:, 0] + sums[:, 1] + sums[:, 2])


def _yes_share(sums: Floats) -> Floats:
    return (sums[:, 0] + sums[:, 1]) / sums[:, 3]


def _divided(above: Floats, below: Floats) -> Floats:
    """0 where nothing is divided by nothing, as both harnesses have it."""
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)
