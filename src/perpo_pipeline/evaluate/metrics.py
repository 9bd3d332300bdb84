"""Metrics of predictions, with 95 % intervals over images (prompts that share one go together).

| task | metrics |
|---|---|
| grounding | `ap50`, `ap75`: share of prompts with IoU >= 0.5, 0.75; `miou`; `parse_rate` |
| grounding, several true boxes | `mean_set_iou` instead of the first three |
| ocr | Fox's six (ocr.py), and of the corpus `cer` and `wer` |
| vqa | `edit_distance`, `token_f1`, `exact_match` |

An answer that could not be read counts as wrong and stays in. `edit_distance` is of all texts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from perpo_pipeline.errors import ArtifactError, InputError
from perpo_pipeline.evaluate import ocr
from perpo_pipeline.evaluate.statistics import mean_interval, statistic_interval
from perpo_pipeline.evaluate.wordnet import METEOR_LEFT_OUT, find_wordnet
from perpo_pipeline.rewards.choice import asks_for_set
from perpo_pipeline.rewards.text import edit_similarities, exact_matches, token_f1s
from perpo_pipeline.store.schemas import PREDICTIONS, PROMPTS

Row = dict[str, Any]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

ANSWER_COLUMNS = PREDICTIONS.pick("prompt_id", "completion", "reward", "parse_ok")
QUESTION_COLUMNS = PROMPTS.pick(
    "prompt_id", "dataset", "split", "task", "image_sha256", role="truth"
)
ALL = "all"
"""The `dataset` of metrics of a whole split."""
RIGHT_AT = 0.5
"""The IoU from which a box counts as right (AP@50)."""


@dataclass(frozen=True)
class Measure:
    """A metric on the prompts that it is of: `where` is `(n,)`, and has m prompts.

    `values` are `(m,)`, whose mean it is, or edits and lengths `(m, 2)` of a corpus error rate.
    """

    name: str
    where: Mask
    values: Floats

    def interval(self, among: Mask, images: npt.NDArray[Any]) -> tuple[float, float, float, int]:
        """(value, low, high, n) on the prompts of `among`, `(n,)`, which hold one or more."""
        values, images = self.values[among[self.where]], images[among & self.where]
        clusters = images.tolist()
        if values.ndim == 1:
            return *mean_interval(values, clusters), len(values)
        return *statistic_interval(values, ocr.corpus_error_rates, clusters), len(values)


def summarise(predictions: pa.Table, prompts: pa.Table, *, fox_compat: bool = False) -> list[Row]:
    """METRICS rows of each split, and of each dataset where a split holds several.

    `predictions` needs the ANSWER_COLUMNS, `prompts` the QUESTION_COLUMNS; `reward` is the IoU
    (of boxes, polygons or sets of boxes) where the task is grounding, and not looked at elsewhere.
    `fox_compat`: see `ocr.fox_metrics`. METEOR is absent where `missing_metrics` says so. Raises
    InputError for no predictions or absent columns, ArtifactError for one without its prompt.
    """
    rows = _join(predictions, prompts)
    measures = list(_measures(rows, fox_compat))
    images = rows["image_sha256"].to_numpy()
    found = []
    for split, dataset, among in _groups(rows):
        for measure in measures:
            if (among & measure.where).any():
                value, low, high, n = measure.interval(among, images)
                found.append(
                    {
                        "name": measure.name,
                        "value": value,
                        "low": low,
                        "high": high,
                        "n": n,
                        "split": split,
                        "dataset": dataset,
                    }
                )
    return found


def right(rewards: Floats) -> Floats:
    """1.0 for each IoU at which a box counts as right, else 0.0; same shape."""
    return np.asarray(rewards >= RIGHT_AT, dtype=np.float64)


def missing_metrics(tasks: Iterable[str]) -> dict[str, str]:
    """Metrics of these tasks that this machine cannot measure: what to tell the user, by name."""
    needs_meteor = "ocr" in tasks
    return {"meteor": METEOR_LEFT_OUT} if needs_meteor and find_wordnet() is None else {}


def _join(predictions: pa.Table, prompts: pa.Table) -> pl.DataFrame:
    wanted = {"predictions": (predictions, ANSWER_COLUMNS), "prompts": (prompts, QUESTION_COLUMNS)}
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
        pl.DataFrame(prompts.select(QUESTION_COLUMNS)),
        on="prompt_id",
        how="left",
        maintain_order="left",
    )
    lost = rows.filter(pl.col("task").is_null())
    if lost.height or rows.height != predictions.num_rows:
        raise ArtifactError(
            f"{lost.height} predictions belong to no prompt, the first to {lost['prompt_id'][0]}"
            if lost.height
            else "a prompt_id occurs twice among the prompts",
            fix="rerun `perpo eval` on these prompts",
        )
    return rows


def _groups(rows: pl.DataFrame) -> Iterator[tuple[str, str, Mask]]:
    """(split, dataset, which rows): each split whole, then its datasets if there are several."""
    for split in rows["split"].unique(maintain_order=True):
        in_split = (rows["split"] == split).to_numpy()
        yield split, ALL, in_split
        datasets = rows.filter(in_split)["dataset"].unique(maintain_order=True).to_list()
        if len(datasets) == 1:
            continue
        if ALL in datasets:
            raise InputError(
                f"a dataset of the split '{split}' is called '{ALL}', which stands for all of them",
                fix="give it another name",
            )
        for dataset in datasets:
            yield split, dataset, in_split & (rows["dataset"] == dataset).to_numpy()


def _measures(rows: pl.DataFrame, fox_compat: bool) -> Iterator[Measure]:
    task = rows["task"].to_numpy()
    yield from _grounding(rows, task == "grounding")
    texts, pages, answers = task != "grounding", task == "ocr", task == "vqa"
    if not texts.any():
        return
    completions, truths = _texts(rows, texts)
    yield Measure("edit_distance", texts, 1.0 - edit_similarities(completions, truths))
    if pages.any():
        yield from _pages(rows, pages, fox_compat)
    if answers.any():
        said, true = _texts(rows, answers)
        yield Measure("token_f1", answers, token_f1s(said, true))
        yield Measure("exact_match", answers, exact_matches(said, true))


def _grounding(rows: pl.DataFrame, where: Mask) -> Iterator[Measure]:
    has_set = where & rows.select(asks_for_set()).to_series().to_numpy()
    has_one = where & ~has_set
    reward = rows["reward"].to_numpy()
    yield Measure("ap50", has_one, right(reward[has_one]))
    yield Measure("ap75", has_one, (reward[has_one] >= 0.75).astype(np.float64))
    yield Measure("miou", has_one, reward[has_one])
    yield Measure("mean_set_iou", has_set, reward[has_set])
    yield Measure("parse_rate", where, rows["parse_ok"].to_numpy()[where].astype(np.float64))


def _pages(rows: pl.DataFrame, where: Mask, fox_compat: bool) -> Iterator[Measure]:
    pairs = list(zip(*_texts(rows, where), strict=True))
    fox = [ocr.fox_metrics(said, true, fox_compat=fox_compat) for said, true in pairs]
    for name in ocr.FOX_METRICS[1:]:
        if name in fox[0]:
            yield Measure(name, where, np.array([metrics[name] for metrics in fox]))
    for name, edits in (("cer", ocr.character_edits), ("wer", ocr.word_edits)):
        counts = np.array([edits(said, true) for said, true in pairs], dtype=np.float64)
        yield Measure(name, where, counts)


def _texts(rows: pl.DataFrame, where: Mask) -> tuple[list[str], list[str]]:
    chosen = rows.filter(where)
    lacking = chosen.filter(pl.col("gt_text").is_null())
    if lacking.height:
        raise ArtifactError(
            f"{lacking.height} prompts have no true text to measure against, the first is "
            f"{lacking['prompt_id'][0]}",
            fix="prepare the data with its truth",
        )
    return chosen["completion"].to_list(), chosen["gt_text"].to_list()
