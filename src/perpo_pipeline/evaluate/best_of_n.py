"""The expected best of n samples: how much better training could make the model.

The best is the answer with the highest reward. Each task is measured in its own metric.
"""

from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from perpo_pipeline import advice
from perpo_pipeline.errors import ArtifactError, InputError
from perpo_pipeline.evaluate.metric import Metric
from perpo_pipeline.evaluate.metrics import (
    GROUNDING,
    METRICS,
    OCR,
    lower_is_better,
    reward_metrics,
)
from perpo_pipeline.evaluate.printing import pivot
from perpo_pipeline.evaluate.statistics import mean_interval
from perpo_pipeline.rewards.builtin import AUTO
from perpo_pipeline.rewards.choice import asks_for_point, asks_for_set, measures_iou
from perpo_pipeline.store.artifacts import Version, input_of
from perpo_pipeline.store.places import find_prompt
from perpo_pipeline.store.schemas import PROMPTS

Floats = npt.NDArray[np.float64]
Row = dict[str, Any]

EDIT_SIMILARITY = "edit_similarity"


def expected_best_of_n(values: npt.ArrayLike, metric: Metric | None = None) -> Floats:
    """The expected maximum of n of a list's N values, for n = 1..N, averaged over the lists.

    With a metric, `values` are rewards, and the result is the metric of the best by reward.

    `values` is `(lists, N)`, the result `(N,)`. It is the exact mean over all subsets of size n,
    and so unbiased for n independent draws. With r_(1) <= ... <= r_(N) it is
    sum_i C(i - 1, n - 1) / C(N, n) * r_(i); for 0/1 values this is pass@k (Chen et al. 2021,
    arXiv:2107.03374, eq. 1). Raises `InputError` for other shapes.
    """
    best = _best_per_list(values) if metric is None else _best_in_metric(values, metric)
    return np.asarray(best.mean(axis=0))


def best_of_n_rows(scores: Version, *, num_resamples: int = 2_000) -> list[Row]:
    """Rows with task, best_of, name, value, low, high, n: the best of n = 1..N of each list.

    Each task has its own rows. The metrics of grounding are those that follow from rewards (`ap50`,
    `miou`) if every reward is the IoU of one region, that of texts is `edit_distance` if every
    reward is an edit similarity; others have `mean_reward`. Intervals are 95 %, by bootstrap over
    images; the prompts come from the lineage of `scores`. Raises `ArtifactError` for lists of
    unequal length. Source: PerPO, figure 1b.
    """
    lists = read_lists(scores)
    reward = scores.manifest["settings"].get("reward")
    found = []
    for (task,), part in lists.group_by("task", maintain_order=True):
        rewards = np.array(part["reward"].to_list(), dtype=np.float64)
        images = part["image_sha256"].to_list()
        for metric in best_of_n_metrics(task_of_rewards(part, reward)):
            for n, values in enumerate(_best_in_metric(rewards, metric).T, start=1):
                value, low, high = mean_interval(values, images, num_resamples=num_resamples)
                row = {"value": value, "low": low, "high": high, "n": len(images)}
                found.append({"task": task, "best_of": n, "name": metric.name, **row})
    return found


def read_lists(scores: Version) -> pl.DataFrame:
    """A row per prompt: prompt_id, the lists reward and parse_ok, task, truth and image_sha256.

    All lists have one length; raises `ArtifactError` for others, and where there are none.
    """
    rows = pl.DataFrame(scores.table(columns=["prompt_id", "reward", "parse_ok"]))
    lists = rows.group_by("prompt_id", maintain_order=True).agg("reward", "parse_ok")
    sizes = lists["reward"].list.len().to_numpy()
    if not lists.height:
        raise ArtifactError(
            "the artifact holds no scores",
            where=str(scores.path),
            fix=f"remove it and run: {scores.remake()}",
        )
    if sizes.min() != sizes.max():
        odd = lists.filter(sizes != sizes.max())
        first = find_prompt(input_of(scores, "prompts"), odd["prompt_id"][0])
        raise ArtifactError(
            f"the best of n needs lists of equal length: the longest has {sizes.max()} samples, "
            f"but {odd.height} have fewer, first the list of {first}",
            where=str(scores.path),
            fix="remove these scores and the samples that they are of, and run: "
            + _remake_samples(scores)
            + f"; then: {scores.remake()}",
        )
    columns = PROMPTS.pick("prompt_id", "task", "image_sha256", role="truth")
    prompts = pl.DataFrame(input_of(scores, "prompts").table(columns=columns))
    return lists.join(prompts, on="prompt_id", how="left", maintain_order="left")


def task_of_rewards(prompts: pl.DataFrame, reward: Any) -> str | None:
    """The task of METRICS whose metrics follow from rewards of this setting on these prompts.

    GROUNDING if all are IoUs of one region, OCR if all are edit similarities, None otherwise.
    `prompts` has the columns task and truth.
    """
    is_box = (pl.col("task") == GROUNDING) & ~asks_for_set() & ~asks_for_point()
    if measures_iou(reward) and prompts.select(is_box.all()).item():
        return GROUNDING
    is_text = (prompts["task"] != GROUNDING).all()
    return OCR if is_text and reward in ({AUTO: 1.0}, {EDIT_SIMILARITY: 1.0}) else None


def best_of_n_metrics(task: str | None) -> list[Metric]:
    """The metrics of the curve, the main one first; `task` is that of `task_of_rewards`.

    Of grounding, metrics for which lower is better are left out.
    """
    if task == OCR:
        return [METRICS["edit_distance"]]
    return [metric for metric in reward_metrics(task) if metric.higher_is_better is not False]


def _best_in_metric(rewards: npt.ArrayLike, metric: Metric) -> Floats:
    """The expected `metric` of the best of n = 1..N samples of each list, `(lists, N)`.

    Where lower is better, the best has the smallest value.
    """
    values = metric.from_rewards(np.asarray(rewards, dtype=np.float64))
    if metric.higher_is_better is False:
        return -_best_per_list(-values)
    return _best_per_list(values)


def best_of_n_table(rows: Sequence[Row]) -> str:
    """The rows as text: for each task a block with a line for each n, a column for each metric.

    The task is named where there are several, and below each block the metrics for which lower is
    better.
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    blocks = []
    for task in tasks:
        chosen = [row for row in rows if row["task"] == task]
        note = lower_is_better(list(dict.fromkeys(row["name"] for row in chosen)))
        lines = [f"{task}:"] if len(tasks) > 1 else []
        blocks.append("\n".join([*lines, pivot(chosen, ("best_of",)), *([note] if note else [])]))
    return "\n\n".join(blocks)


def _remake_samples(scores: Version) -> str:
    """The command that makes the samples of these scores."""
    record = scores.manifest["inputs"].get("samples")
    return advice.remake("samples", record["variant"] if record else scores.variant)


def _best_per_list(values: npt.ArrayLike) -> Floats:
    """The expected maximum of n = 1..N values of each list, (lists, N)."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise InputError(f"values must have the shape (lists, N), not {array.shape}")
    return np.asarray(np.sort(array, axis=1) @ _weights(array.shape[1]).T)


def _weights(size: int) -> Floats:
    """weights[n - 1, i - 1] = P(the i-th smallest of `size` values is the largest of n draws)."""
    ranks = range(1, size + 1)
    return np.array([[comb(i - 1, n - 1) / comb(size, n) for i in ranks] for n in ranks])
