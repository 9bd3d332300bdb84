"""The expected best of n samples: how much better training could make the model."""

from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from perpo_pipeline import advice
from perpo_pipeline.errors import ArtifactError, InputError
from perpo_pipeline.evaluate.metric import Metric
from perpo_pipeline.evaluate.metrics import GROUNDING, reward_metrics
from perpo_pipeline.evaluate.printing import pivot
from perpo_pipeline.evaluate.statistics import mean_interval
from perpo_pipeline.rewards.choice import asks_for_point, asks_for_set, measures_iou
from perpo_pipeline.store.artifacts import Version, input_of
from perpo_pipeline.store.places import find_prompt
from perpo_pipeline.store.schemas import PROMPTS

Floats = npt.NDArray[np.float64]
Row = dict[str, Any]


def expected_best_of_n(values: npt.ArrayLike) -> Floats:
    """The expected maximum of n of a list's N values, for n = 1..N, averaged over the lists.

    `values` is `(lists, N)`, the result `(N,)`. It is the exact mean over all subsets of size n,
    and so unbiased for n independent draws. With r_(1) <= ... <= r_(N) it is
    sum_i C(i - 1, n - 1) / C(N, n) * r_(i); for 0/1 values this is pass@k (Chen et al. 2021,
    arXiv:2107.03374, eq. 1). Raises `InputError` for other shapes.
    """
    return np.asarray(_best_per_list(values).mean(axis=0))


def best_of_n_rows(scores: Version, *, num_resamples: int = 2_000) -> list[Row]:
    """Rows with best_of, name, value, low, high, n: the best of n = 1..N samples of each list.

    The metrics are those of grounding that follow from rewards (`ap50`, `miou`) if every reward is
    the IoU of one region, else `mean_reward`. Intervals are 95 %, by bootstrap over images; the
    prompts come from the lineage of `scores`. Raises `ArtifactError` for lists of unequal length.
    Source: PerPO, figure 1b.
    """
    rewards, images, is_iou = _lists(scores)
    found = []
    for metric in best_of_n_metrics(is_iou=is_iou):
        best = _best_per_list(metric.from_rewards(rewards))
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


def _remake_samples(scores: Version) -> str:
    """The command that makes the samples of these scores."""
    record = scores.manifest["inputs"].get("samples")
    return advice.remake("samples", record["variant"] if record else scores.variant)


def _lists(scores: Version) -> tuple[Floats, list[str], bool]:
    """Rewards (lists, N), the image of each list, and whether all rewards are IoUs of a region."""
    rows = pl.DataFrame(scores.table(columns=["prompt_id", "reward"]))
    lists = rows.group_by("prompt_id", maintain_order=True).agg("reward")
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
    joined = lists.join(prompts, on="prompt_id", how="left", maintain_order="left")
    is_other = asks_for_set() | asks_for_point()
    has_one = joined.select((pl.col("task") == "grounding") & ~is_other).to_series()
    rewards = np.array(lists["reward"].to_list(), dtype=np.float64)
    is_iou = measures_iou(scores.manifest["settings"].get("reward"))
    return rewards, joined["image_sha256"].to_list(), bool(has_one.all()) and is_iou


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
