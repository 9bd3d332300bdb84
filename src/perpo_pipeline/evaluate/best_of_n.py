"""What the best of n samples is worth: the room that training can use."""

from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from perpo_pipeline.errors import ArtifactError, InputError
from perpo_pipeline.evaluate.metrics import GROUNDING, Metric, reward_metrics
from perpo_pipeline.evaluate.printing import pivot
from perpo_pipeline.evaluate.statistics import mean_interval
from perpo_pipeline.rewards.choice import asks_for_set, measures_iou
from perpo_pipeline.store.artifacts import Version, input_of
from perpo_pipeline.store.schemas import PROMPTS

Floats = npt.NDArray[np.float64]
Row = dict[str, Any]


def expected_best_of_n(values: npt.ArrayLike) -> Floats:
    """Expected maximum of n of the N values of each list, for n = 1..N, as the mean over lists.

    `values` is `(lists, N)`; the result `(N,)`. It is the exact mean over all subsets of n without
    repetition, so unbiased for n independent draws: with r_(1) <= ... <= r_(N) it is
    sum_i C(i - 1, n - 1) / C(N, n) * r_(i); for 0/1 values this is pass@k (Chen et al. 2021,
    arXiv:2107.03374, eq. 1). Raises `InputError` for other shapes.
    """
    return np.asarray(_of_each_list(values).mean(axis=0))


def best_of_n_rows(scores: Version, *, num_resamples: int = 2_000) -> list[Row]:
    """Rows of best_of, name, value, low, high, n: the best of n = 1..N samples of each list.

    Metrics are those of grounding that follow from rewards (`ap50`, `miou`) where every reward is
    the IoU of one region, else `mean_reward`, with 95 % intervals of the bootstrap over images; the
    prompts are those in the lineage of `scores`. Raises `ArtifactError` for lists of unequal
    length. Source: PerPO, figure 1b.
    """
    rewards, images, is_iou = _lists(scores)
    found = []
    for metric in best_of_n_metrics(is_iou=is_iou):
        best = _of_each_list(metric.from_rewards(rewards))
        for n, values in enumerate(best.T, start=1):
            value, low, high = mean_interval(values, images, num_resamples=num_resamples)
            found.append(
                {
                    "best_of": n,
                    "name": metric.name,
                    "value": value,
                    "low": low,
                    "high": high,
                    "n": len(images),
                }
            )
    return found


def best_of_n_metrics(*, is_iou: bool) -> list[Metric]:
    """The metrics of the curve, the main one first; `is_iou`: all rewards are IoUs of one region.

    The best of n has the largest value, so metrics for which lower is better are left out.
    """
    found = reward_metrics(GROUNDING if is_iou else None)
    return [metric for metric in found if metric.higher_is_better is not False]


def best_of_n_table(rows: Sequence[Row]) -> str:
    """The rows as text: a line for each n, a column for each metric."""
    return pivot(rows, ("best_of",))


def _lists(scores: Version) -> tuple[Floats, list[str], bool]:
    """Rewards (lists, N), the image of each list, and whether each asks for one region."""
    rows = pl.DataFrame(scores.table(columns=["prompt_id", "reward"]))
    lists = rows.group_by("prompt_id", maintain_order=True).agg("reward")
    sizes = lists["reward"].list.len().to_numpy()
    if not lists.height:
        raise ArtifactError(
            "there are no scores", where=str(scores.path), fix="rerun `perpo score`"
        )
    if sizes.min() != sizes.max():
        odd = lists.filter(sizes != sizes.max())
        raise ArtifactError(
            f"the best of n needs lists of one length: the longest has {sizes.max()} samples, but "
            f"{odd.height} have fewer, the first that of prompt {odd['prompt_id'][0]}",
            where=str(scores.path),
            fix="sample the prompts again that lack samples",
        )
    columns = PROMPTS.pick("prompt_id", "task", "image_sha256", role="truth")
    prompts = pl.DataFrame(input_of(scores, "prompts").table(columns=columns))
    joined = lists.join(prompts, on="prompt_id", how="left", maintain_order="left")
    has_one = joined.select((pl.col("task") == "grounding") & ~asks_for_set()).to_series()
    rewards = np.array(lists["reward"].to_list(), dtype=np.float64)
    is_iou = measures_iou(scores.manifest["settings"].get("reward"))
    return rewards, joined["image_sha256"].to_list(), bool(has_one.all()) and is_iou


def _of_each_list(values: npt.ArrayLike) -> Floats:
    """Expected maximum of n = 1..N of the values of each list, (lists, N)."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise InputError(f"the values of lists must have the shape (lists, N), not {array.shape}")
    return np.asarray(np.sort(array, axis=1) @ _weights(array.shape[1]).T)


def _weights(size: int) -> Floats:
    """weights[n - 1, i - 1] = P(the i-th smallest of `size` values is the largest of n drawn)."""
    ranks = range(1, size + 1)
    return np.array([[comb(i - 1, n - 1) / comb(size, n) for i in ranks] for n in ranks])
