"""Every metric as one record: its name, label and unit, its tasks, and how it is measured.

METRICS is the only list of metrics. Its order is that of metrics rows and of the report's columns.

| read by | for |
|---|---|
| `perpo eval`, `perpo measure` (summarise.py) | `tasks`, `of_answers` or `of_reward`, `statistic` |
| `perpo compare`, `perpo measure best-of-n` | `compared_on`, `of_reward` |
| tables in the terminal, the model card (printing.py) | `unit` |
| `perpo report` | `label`, `in_report`, `higher_is_better`, `compared_on`, `of_reward` |

pope.py and judge/ measure the metrics of their benchmarks, so those records have no function.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from perpo_pipeline.evaluate import grec, ocr
from perpo_pipeline.evaluate.metric import AS_REPORTED, FRACTION, Answers, Floats, Metric, rating
from perpo_pipeline.evaluate.wordnet import METEOR_LEFT_OUT, find_wordnet
from perpo_pipeline.rewards import sets
from perpo_pipeline.rewards.choice import asks_for_point, asks_for_set, has_no_target
from perpo_pipeline.rewards.text import edit_similarities, exact_matches, token_f1s
from perpo_pipeline.store.schemas import PROMPTS

GROUNDING, GROUNDING_SET, NO_TARGET = "grounding", "grounding-set", "no-target"
POINTING = "pointing"
"""Here the task `grounding` is four tasks: prompts with one true region, with any number of boxes,
without a target (an empty list of boxes), and with a true point."""
ANY_NUMBER = (GROUNDING_SET, NO_TARGET)
_REGIONS = (GROUNDING, *ANY_NUMBER, POINTING)
OCR, VQA, POPE = "ocr", "vqa", "pope"
JUDGED = WIN_RATE, LLAVA_BENCH, MMHAL, MM_VET = "win-rate", "llava-bench", "mmhal", "mm-vet"

RIGHT_AT = 0.5
"""A box is right if its IoU is at least this (AP@50)."""


def find_metric(name: str) -> Metric:
    """The record with this name; for an unknown name, a record with the name as its label.

    `TASK/METRIC` is a number of another harness: as it reports it, and it says which is better.
    """
    if name in METRICS:
        return METRICS[name]
    if "/" in name:
        return Metric(name, name, tasks=(), unit=AS_REPORTED, in_report=None, higher_is_better=None)
    return Metric(name, name, tasks=())


def main_metric(names: Collection[str]) -> str:
    """The first in METRICS that the report shows, of at least one name; else the first name.

    A metric that is measured only where it is not 0 is never the main one.
    """
    shown = [m for m in METRICS.values() if m.in_report is not None and not m.only_if_any]
    known = [metric.name for metric in shown if metric.name in names]
    return known[0] if known else next(iter(names))


def lower_is_better(names: Collection[str]) -> str | None:
    """The note that names the metrics for which lower is better; None if there are none."""
    lower = [name for name in names if find_metric(name).higher_is_better is False]
    return f"lower is better: {', '.join(lower)}" if lower else None


def main_metrics(names: Collection[str]) -> list[str]:
    """The main metric of each task that these metrics are of, the first in METRICS first.

    Boxes, sets of boxes and points are one task here, as in the data. One metric if no task is
    known, as of rewards of a user's own.
    """
    found: list[str] = []
    named: set[str] = set()
    for metric in METRICS.values():
        of = _tasks_of_data(metric)
        is_shown = metric.in_report is not None and not metric.only_if_any
        if metric.name in names and is_shown and of and named.isdisjoint(of):
            found.append(metric.name)
            named |= of
    return found or [main_metric(names)]


def num_prompts(counts: Mapping[str, int], mains: Collection[str]) -> int:
    """How many prompts a split has, from the numbers of prompts that its metrics were measured on.

    `mains` are its `main_metrics`, which are among them.
    """
    of = {name: _tasks_of_data(find_metric(name)) for name in counts}
    near = {main: [name for name in of if of[name] and of[name] <= of[main]] for main in mains}
    return sum(max(counts[name] for name in (main, *near[main])) for main in mains)


def _tasks_of_data(metric: Metric) -> set[str]:
    """Its tasks as the data name them: boxes, sets of boxes and points are one."""
    return {GROUNDING if task in _REGIONS else task for task in metric.tasks}


def reward_metrics(task: str | None) -> list[Metric]:
    """The metrics compared on this task that follow from rewards; `mean_reward` if there are none.

    `task` is None for rewards that are not the task's own, such as a user's function.
    """
    found = [m for m in METRICS.values() if task in m.compared_on and m.of_reward is not None]
    return found or [METRICS["mean_reward"]]


def measured_metrics(tasks: Iterable[str]) -> list[Metric]:
    """The metrics that `summarise` measures on prompts of these tasks on this machine."""
    wanted = set(tasks)
    return [
        metric
        for metric in METRICS.values()
        if wanted.intersection(metric.tasks)
        and metric.is_measured_here
        and metric.missing() is None
    ]


def missing_metrics(tasks: Iterable[str]) -> dict[str, str]:
    """Metrics of these tasks that this machine cannot measure: messages by metric name."""
    wanted = set(tasks)
    named = {m.name: m.missing() for m in METRICS.values() if wanted.intersection(m.tasks)}
    return {name: message for name, message in named.items() if message is not None}


def task_of_prompt() -> pl.Expr:
    """The task of each prompt, as METRICS names it, from the columns of `prompts`."""
    return (
        pl.when(has_no_target())
        .then(pl.lit(NO_TARGET))
        .when(asks_for_set())
        .then(pl.lit(GROUNDING_SET))
        .when(asks_for_point())
        .then(pl.lit(POINTING))
        .otherwise(pl.col("task"))
    )


def tasks_of(prompts: pa.Table) -> list[str]:
    """The different tasks of these prompts, as METRICS names them."""
    columns = PROMPTS.pick("task", role="truth")
    rows = pl.DataFrame(prompts.select(columns)).select(task=task_of_prompt())
    return sorted(rows["task"].unique())


def right(rewards: Floats) -> Floats:
    """1.0 for each IoU at which a box counts as right, else 0.0; same shape."""
    return _at_least(RIGHT_AT)(rewards)


def _at_least(iou: float) -> Callable[[Floats], Floats]:
    return lambda rewards: np.asarray(rewards >= iou, dtype=np.float64)


def _unchanged(rewards: Floats) -> Floats:
    return rewards


def _parsed(answers: Answers) -> Floats:
    return answers.parsed.astype(np.float64)


def _unanswered(answers: Answers) -> Floats:
    marked = answers.unanswered
    return np.zeros(len(answers.rewards)) if marked is None else marked.astype(np.float64)


def _out_of_frame(answers: Answers) -> Floats:
    """1.0 where the region reaches out of its frame, by whatever little, else 0.0.

    The region is the answer's box or polygon, or all its boxes together where several are asked
    for. An answer without a region is not outside. The frame is the part of the picture that
    `box_frame` names: for `full` and `resized` the whole image.
    """
    return np.asarray(answers.beyond > 0, dtype=np.float64)


def _of_boxes(measure: Callable[[list[Floats], list[Floats]], Floats]) -> Any:
    return lambda answers: measure(*answers.box_lists)


def _without_box(answers: Answers) -> Floats:
    """1.0 where an answer has no box and some text: right without a target."""
    has_box = grec.have_boxes(answers.box_lists[0])
    return (~has_box & answers.has_text).astype(np.float64)


def _with_box(answers: Answers) -> Floats:
    return grec.have_boxes(answers.box_lists[0]).astype(np.float64)


def _all_found(answers: Answers) -> Floats:
    """1.0 where the boxes are right, all of them; no text is never right."""
    return np.where(answers.has_text, grec.all_found(*answers.box_lists), 0.0)


def _edit_distances(answers: Answers) -> Floats:
    return 1.0 - edit_similarities(answers.texts, answers.truths)


def _fox(name: str) -> Callable[[Answers], Floats]:
    return lambda answers: np.array([page[name] for page in answers.fox])


def _edits(count: Callable[[str, str], tuple[int, int]]) -> Callable[[Answers], Floats]:
    def counts(answers: Answers) -> Floats:
        pairs = zip(answers.texts, answers.truths, strict=True)
        return np.array([count(*pair) for pair in pairs], dtype=np.float64)

    return counts


def _without_wordnet() -> str | None:
    return METEOR_LEFT_OUT if find_wordnet() is None else None


def _error_rate(name: str, label: str, count: Any) -> Metric:
    """An error rate of the corpus: all edits over the length of all true texts."""
    return Metric(
        name,
        label,
        (OCR,),
        of_answers=_edits(count),
        statistic=ocr.corpus_error_rates,
        in_report=FRACTION,
        higher_is_better=False,
    )


def _ratings() -> list[Metric]:
    """A judge's ratings of both models in a comparison."""
    aspects = ("response_accuracy", "instruction_adherence", "hallucination_reduction")
    return [
        Metric(
            f"{aspect}_{model}",
            f"{aspect.replace('_', ' ')}, model {model.upper()}",
            (WIN_RATE,),
            unit=rating(5),
            in_report=None,
        )
        for model in ("a", "b")
        for aspect in aspects
    ]


def _judged(name: str, label: str, task: str, **more: Any) -> Metric:
    return Metric(name, label, (task,), in_report=None, **more)


_IN_ORDER = (
    Metric("ap50", "AP@50", (GROUNDING,), of_reward=right, compared_on=(GROUNDING,)),
    Metric("ap75", "AP@75", (GROUNDING,), of_reward=_at_least(0.75)),
    Metric("miou", "mIoU", (GROUNDING,), of_reward=_unchanged, compared_on=(GROUNDING,)),
    Metric(
        "mean_set_iou",
        "mean IoU of sets",
        (GROUNDING_SET,),
        of_reward=_unchanged,
        compared_on=(GROUNDING_SET,),
    ),
    Metric(
        "detection_f1", "F1 of boxes", (GROUNDING_SET,), of_answers=_of_boxes(sets.detection_f1s)
    ),
    Metric(
        "detection_f1_mean",
        "F1 of boxes, mean over 0.5:0.95",
        (GROUNDING_SET,),
        of_answers=_of_boxes(sets.mean_detection_f1s),
    ),
    Metric(
        "box_count",
        "closeness of box counts",
        (GROUNDING_SET,),
        of_answers=_of_boxes(sets.box_counts),
    ),
    Metric("all_found", "Pr@(F1=1)", ANY_NUMBER, of_answers=_all_found),
    Metric("t_acc", "T-acc", (GROUNDING_SET,), of_answers=_with_box),
    Metric("n_acc", "N-acc", (NO_TARGET,), of_answers=_without_box),
    Metric(
        "denial_rate",
        "no target said",
        (NO_TARGET,),
        of_reward=_unchanged,
        compared_on=(NO_TARGET,),
    ),
    Metric(
        "point_closeness",
        "closeness of points",
        (POINTING,),
        of_reward=_unchanged,
        compared_on=(POINTING,),
    ),
    Metric("parse_rate", "parsed", (GROUNDING, *ANY_NUMBER, POINTING, *JUDGED), of_answers=_parsed),
    Metric(
        "out_of_frame_rate",
        "out of frame",
        (GROUNDING, *ANY_NUMBER, POINTING),
        of_answers=_out_of_frame,
        higher_is_better=None,
    ),
    Metric(
        "edit_distance",
        "edit distance",
        (OCR, VQA),
        of_answers=_edit_distances,
        of_reward=lambda rewards: 1.0 - rewards,
        compared_on=(OCR, VQA),
        in_report=FRACTION,
        higher_is_better=False,
    ),
    Metric("f1", "F1", (OCR, POPE), of_answers=_fox("f1")),
    Metric("precision", "precision", (OCR, POPE), of_answers=_fox("precision")),
    Metric("recall", "recall", (OCR, POPE), of_answers=_fox("recall")),
    Metric("bleu", "BLEU", (OCR,), of_answers=_fox("bleu")),
    Metric("meteor", "METEOR", (OCR,), of_answers=_fox("meteor"), missing=_without_wordnet),
    _error_rate("cer", "CER", ocr.character_edits),
    _error_rate("wer", "WER", ocr.word_edits),
    Metric(
        "token_f1",
        "token F1",
        (VQA,),
        of_answers=lambda answers: token_f1s(answers.texts, answers.truths),
    ),
    Metric(
        "exact_match",
        "exact match",
        (VQA,),
        of_answers=lambda answers: exact_matches(answers.texts, answers.truths),
    ),
    Metric("accuracy", "accuracy", (POPE,), of_reward=_unchanged, compared_on=(POPE,)),
    Metric("yes_rate", "answers that say yes", (POPE,), in_report=None, higher_is_better=None),
    Metric(
        "neither_rate",
        "answers that say neither yes nor no",
        (POPE,),
        in_report=None,
        higher_is_better=False,
    ),
    Metric("accuracy_as_read", "accuracy by the first yes or no", (POPE,), in_report=None),
    Metric("f1_as_read", "F1 by the first yes or no", (POPE,), in_report=None),
    Metric(
        "unanswered_rate",
        "unanswered",
        (GROUNDING, *ANY_NUMBER, POINTING, OCR, VQA),
        of_answers=_unanswered,
        higher_is_better=False,
        only_if_any=True,
    ),
    Metric("mean_reward", "mean reward", (), of_reward=_unchanged),
    _judged("win_rate", "win rate", WIN_RATE),
    _judged("tie_rate", "replies that choose neither", WIN_RATE, higher_is_better=None),
    _judged("order_disagreement", "order disagreement", WIN_RATE, higher_is_better=False),
    *_ratings(),
    _judged("llava_bench_score", "LLaVA-Bench score", LLAVA_BENCH),
    _judged(
        "reference_rating",
        "rating of the reference",
        LLAVA_BENCH,
        unit=rating(10),
        higher_is_better=None,
    ),
    _judged("model_rating", "rating of the model", LLAVA_BENCH, unit=rating(10)),
    _judged("mmhal_score", "MMHal score", MMHAL, unit=rating(6)),
    _judged("hallucination_rate", "hallucination rate", MMHAL, higher_is_better=False),
    _judged("mm_vet_score", "MM-Vet score", MM_VET),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _IN_ORDER}
"""All metrics by name. Code reads it at call time, so a new entry is found everywhere."""
