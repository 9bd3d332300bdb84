"""Predictions and prompts -> metrics rows, with 95 % intervals over images.

Prompts that share an image are drawn together. An answer that could not be parsed counts as wrong,
and so does a prompt without an answer; neither is ever left out. metrics.METRICS says which metrics
a task has.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from perpo_pipeline import advice
from perpo_pipeline.answers.pipeline import answer_texts
from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.config.evaluations import ALL as ALL
from perpo_pipeline.config.evaluations import refuse_dataset_called_all
from perpo_pipeline.errors import ArtifactError, InputError
from perpo_pipeline.evaluate.metric import Answers, Bools, Floats, Metric
from perpo_pipeline.evaluate.metrics import GROUNDING, measured_metrics, task_of_prompt
from perpo_pipeline.evaluate.slices import (
    EXTRA,
    NO_SLICE,
    is_slice,
    slice_names,
    slice_values,
    sorted_slices,
)
from perpo_pipeline.evaluate.statistics import mean_interval, statistic_interval
from perpo_pipeline.rewards import builtin as rewards
from perpo_pipeline.rewards.choice import measure as measure_reward
from perpo_pipeline.rewards.doubts import Doubts
from perpo_pipeline.rewards.normalise import normalise_texts
from perpo_pipeline.store.schemas import PREDICTIONS, PROMPTS, UNANSWERED

Row = dict[str, Any]

ANSWER_COLUMNS = PREDICTIONS.pick(
    "prompt_id", "completion", "finish_reason", "resized", "reward", "parse_ok"
)
QUESTION_COLUMNS = PROMPTS.pick(
    "prompt_id", "dataset", "split", "task", "image_sha256", "width", "height", role="truth"
)
DEFAULT_READING = Reading()
NO_ANSWER = "x"
"""The text of no answer where the true text is empty: one edit, and no word in common."""


@dataclass(frozen=True)
class Measured:
    """A metric's values or counts `(m, ...)` on the m prompts that `where`, `(n,)`, marks."""

    metric: Metric
    where: Bools
    values: Floats

    def interval(self, among: Bools, images: npt.NDArray[Any]) -> tuple[float, float, float, int]:
        """(value, low, high, n) over the prompts in `among`, `(n,)`, at least one of them here."""
        values, images = self.values[among[self.where]], images[among & self.where]
        clusters = images.tolist()
        if self.metric.statistic is None:
            return *mean_interval(values, clusters), len(values)
        return *statistic_interval(values, self.metric.statistic, clusters), len(values)


def summarise(
    predictions: pa.Table,
    prompts: pa.Table,
    *,
    reading: Reading = DEFAULT_READING,
    normalise: Sequence[str] = (),
    fox_compat: bool = False,
    by: Sequence[str] = (),
) -> list[Row]:
    """METRICS rows for each split, for each dataset of a split that has several, for each slice.

    `predictions` needs the ANSWER_COLUMNS, `prompts` the QUESTION_COLUMNS; `reading` says how the
    completions were read, `normalise` what counts as the same text. For the task grounding
    `reward` must be the IoU (of boxes, polygons or sets of boxes); for other tasks it is not read.
    `fox_compat`: see `ocr.fox_metrics`. `by` names columns of `extra`, which `prompts` then needs,
    too: the prompts of each of their values are a slice. Metrics named by `missing_metrics` are
    left out. Raises InputError for no predictions or missing columns, ArtifactError for a
    prediction without its prompt or a text without its truth.
    """
    rows = _join(predictions, prompts, [*QUESTION_COLUMNS, *[EXTRA] * bool(by)])
    _check_truths(rows)
    measured = list(_measure(rows, reading, normalise, fox_compat))
    images = rows["image_sha256"].to_numpy()
    found = []
    for group, among in (*_groups(rows), *_slices(rows, by)):
        for one in measured:
            if (among & one.where).any():
                value, low, high, n = one.interval(among, images)
                estimate = {"value": value, "low": low, "high": high, "n": n}
                found.append({"name": one.metric.name, **estimate, **group})
    return found


def values_of(
    predictions: pa.Table,
    prompts: pa.Table,
    names: Sequence[str],
    *,
    reading: Reading = DEFAULT_READING,
    normalise: Sequence[str] = (),
) -> dict[str, Floats]:
    """Values `(n,)` of these metrics, each answer's own, in the order of the predictions.

    NaN on prompts of other tasks than the metric's. Metrics that this machine cannot measure, and
    those whose value on a whole set is no mean over its answers, are left out. Arguments and errors
    as in `summarise`.
    """
    rows = _join(predictions, prompts)
    _check_truths(rows)
    found = {}
    for one in _measure(rows, reading, normalise, fox_compat=False, names=names):
        if one.metric.statistic is None:
            found[one.metric.name] = np.full(rows.height, np.nan)
            found[one.metric.name][one.where] = one.values
    return found


def doubts_of(predictions: pa.Table, prompts: pa.Table, reading: Reading) -> list[str]:
    """Warnings that these predictions were read with the wrong settings or cut: `rewards.doubts`.

    Arguments and errors as in `summarise`. Unanswered prompts give no reason to doubt.
    """
    rows, doubts = _join(predictions, prompts), Doubts(reading)
    rows = rows.filter(~pl.col("finish_reason").eq_missing(UNANSWERED))
    if rows.is_empty():
        return []
    unread = rows.filter(~pl.col("parse_ok"))["completion"]
    doubts.add_texts(rows["parse_ok"].to_numpy(), answer_texts(rows["completion"], reading))
    doubts.example = unread[0] if len(unread) else None
    doubts.add_reach(_reach(rows, reading))
    return doubts.lines()


def _join(
    predictions: pa.Table, prompts: pa.Table, questions: Sequence[str] = QUESTION_COLUMNS
) -> pl.DataFrame:
    wanted = {"predictions": (predictions, ANSWER_COLUMNS), "prompts": (prompts, questions)}
    absent = [
        f"{name} lack {column}"
        for name, (table, columns) in wanted.items()
        for column in columns
        if column not in table.column_names
    ]
    if absent:
        raise InputError(f"metrics need more columns: {', '.join(absent)}")
    if not predictions.num_rows:
        raise InputError("there are no predictions to measure", fix="evaluate at least one prompt")
    rows = pl.DataFrame(predictions.select(ANSWER_COLUMNS)).join(
        pl.DataFrame(prompts.select(questions)),
        on="prompt_id",
        how="left",
        maintain_order="left",
    )
    lost = rows.filter(pl.col("task").is_null())
    if lost.height or rows.height != predictions.num_rows:
        raise ArtifactError(
            f"{lost.height} predictions have no prompt, first {lost['prompt_id'][0]}"
            if lost.height
            else "a prompt_id occurs twice among the prompts",
            fix=f"remove the predictions and run: {advice.command('eval')}",
        )
    return rows


def _groups(rows: pl.DataFrame) -> Iterator[tuple[Row, Bools]]:
    """({split, dataset}, mask of rows): each whole split, then its datasets if it has several."""
    for split in rows["split"].unique(maintain_order=True):
        in_split = (rows["split"] == split).to_numpy()
        yield {"split": split, "dataset": ALL, **NO_SLICE}, in_split
        datasets = rows.filter(in_split)["dataset"].unique(maintain_order=True).to_list()
        if len(datasets) == 1:
            continue
        refuse_dataset_called_all(datasets, split)
        for dataset in datasets:
            in_dataset = in_split & (rows["dataset"] == dataset).to_numpy()
            yield {"split": split, "dataset": dataset, **NO_SLICE}, in_dataset


def _slices(rows: pl.DataFrame, by: Sequence[str]) -> Iterator[tuple[Row, Bools]]:
    """(split, dataset and slice, mask of rows) of each value of each column that a split has."""
    for split in rows["split"].unique(maintain_order=True):
        in_split = (rows["split"] == split).to_numpy()
        for column in by:
            values = slice_values(rows.filter(in_split)[EXTRA], column)
            if values is None:
                continue
            for value in sorted_slices(values):
                where = in_split.copy()
                where[in_split] = is_slice(values, value)
                yield slice_names(split, column, value), where


def _measure(
    rows: pl.DataFrame,
    reading: Reading,
    normalise: Sequence[str],
    fox_compat: bool,
    names: Sequence[str] | None = None,
) -> Iterator[Measured]:
    """The metrics of these rows' tasks, or those among `names`."""
    tasks = rows.select(task=task_of_prompt())["task"]

    @cache
    def answers_of(wanted: tuple[str, ...]) -> Answers:
        return _answers(rows.filter(tasks.is_in(wanted)), reading, normalise, fox_compat)

    there = set(tasks)
    for metric in measured_metrics(there):
        if names is not None and metric.name not in names:
            continue
        wanted = tuple(task for task in metric.tasks if task in there)
        where = tasks.is_in(wanted).to_numpy()
        values = metric.measure(answers_of(wanted))
        if values.any() or not metric.only_if_any:
            yield Measured(metric, where, values)


def _answers(
    rows: pl.DataFrame, reading: Reading, normalise: Sequence[str], fox_compat: bool
) -> Answers:
    found = answer_texts(rows["completion"], reading)
    texts = normalise_texts(found.fill_null("").to_list(), normalise)
    truths = normalise_texts(rows["gt_text"].fill_null("").to_list(), normalise)
    unanswered = rows["finish_reason"].eq_missing(UNANSWERED).to_numpy()
    return Answers(
        beyond=_reach(rows, reading)[:, 0],
        rewards=rows["reward"].to_numpy(),
        parsed=rows["parse_ok"].to_numpy(),
        # An empty text would be right where the true text is: no answer is a wrong answer.
        texts=[
            NO_ANSWER if not truth.strip() and (lost or is_none) else text
            for text, truth, lost, is_none in zip(
                texts, truths, unanswered, found.is_null(), strict=True
            )
        ],
        truths=truths,
        unanswered=unanswered,
        scored=rewards.Answers(rows, reading),
        fox_compat=fox_compat,
    )


def _reach(rows: pl.DataFrame, reading: Reading) -> Floats:
    """How far the region in each answer goes, `(n, 2)`: `Placement.reach`; NaN for none."""
    reach = np.full((rows.height, 2), np.nan)
    is_region = ((rows["task"] == GROUNDING) & rows["parse_ok"]).to_numpy()
    if is_region.any():
        answers = rewards.Answers(rows.filter(is_region), reading)
        reach[is_region] = measure_reward(answers, {rewards.AUTO: 1.0}).reach
    return reach


def _check_truths(rows: pl.DataFrame) -> None:
    lacking = rows.filter((pl.col("task") != "grounding") & pl.col("gt_text").is_null())
    if lacking.height:
        raise ArtifactError(
            f"{lacking.height} prompts have no true text to measure against, first "
            f"prompt {lacking['prompt_id'][0]}",
            fix="prepare the data with `gt_text`",
        )
