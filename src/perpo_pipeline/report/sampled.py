"""The samples of the base model: their rewards, the margins of the lists, the best of n samples."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from perpo_pipeline.config.by_task import of_task
from perpo_pipeline.evaluate.best_of_n import (
    best_of_n_metrics,
    expected_best_of_n,
    read_lists,
    task_of_rewards,
)
from perpo_pipeline.evaluate.metric import Metric
from perpo_pipeline.evaluate.metrics import GROUNDING, METRICS
from perpo_pipeline.evaluate.statistics import mean_interval
from perpo_pipeline.report.inputs import Inputs
from perpo_pipeline.report.results import Estimate
from perpo_pipeline.store.list_prompts import num_new_lists

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sampled:
    """The samples and lists of one task; `rewards` and `parse_ok` are `(lists, N)`.

    `metrics_of` is the task of METRICS whose metrics follow from these rewards: see
    `task_of_rewards`.
    """

    rewards: Floats
    parse_ok: npt.NDArray[np.bool_]
    metrics_of: str | None
    images: list[str]
    kept_margins: Floats
    dropped_margins: dict[str, Floats]
    kept_by_unparsed_only: int
    min_margin: float | None

    @property
    def metric(self) -> Metric:
        """The metric of the best of n samples: AP@50, the edit distance (OCR) or mean reward."""
        return best_of_n_metrics(self.metrics_of)[0]

    def best_of_n(self) -> Floats:
        """The expected `metric` of the best of n = 1..N samples, `(N,)`."""
        return expected_best_of_n(self.rewards, self.metric)


@dataclass(frozen=True)
class Oracle:
    """Metrics of the best of `size` samples of each list: an upper bound that needs the truth."""

    lists: int
    size: int
    metrics: dict[str, Estimate]


def read_sampled(inputs: Inputs) -> dict[str, Sampled]:
    """By task: the scores of all samples as lists, the margins of the kept and dropped lists.

    All are lists of the run's own samples; earlier lists are not among them.
    """
    lists = read_lists(inputs.scores)
    tasks = lists.select("prompt_id", "task")
    kept = pl.DataFrame(inputs.preferences.table(columns=["task", "margin"]))
    kept = kept.head(num_new_lists(inputs.preferences))
    columns = ["prompt_id", "reason", "margin"]
    dropped = pl.DataFrame(inputs.preferences.table("dropped", columns=columns)).join(
        tasks, on="prompt_id", how="left", maintain_order="left"
    )
    manifest = inputs.preferences.manifest
    counts = manifest["counts"].get("tasks", {})
    reward = inputs.scores.manifest["settings"].get("reward")
    return {
        str(task): Sampled(
            rewards=np.array(part["reward"].to_list()),
            parse_ok=np.array(part["parse_ok"].to_list()),
            metrics_of=task_of_rewards(part, reward),
            images=part["image_sha256"].to_list(),
            kept_margins=_margins(kept.filter(task=task)),
            dropped_margins=_by_reason(dropped.filter(task=task)),
            kept_by_unparsed_only=counts.get(task, manifest["counts"])["kept_by_unparsed_only"],
            min_margin=of_task(manifest["settings"]["min_margin"], str(task)),
        )
        for (task,), part in lists.group_by("task", maintain_order=True)
    }


def _by_reason(dropped: pl.DataFrame) -> dict[str, Floats]:
    """The margins of the dropped lists by the reason of the drop."""
    groups = sorted(dropped.group_by("reason"), key=lambda item: item[0])
    return {str(reason): _margins(group) for (reason,), group in groups}


def _margins(rows: pl.DataFrame) -> Floats:
    return np.asarray(rows["margin"].drop_nulls().to_numpy(), dtype=np.float64)


def oracle(sampled: Collection[Sampled], num_resamples: int) -> Oracle | None:
    """The best of all N samples of each list; None where no metrics follow from their rewards."""
    metrics_of = {one.metrics_of for one in sampled}
    known = [
        metric
        for metric in METRICS.values()
        if metric.of_reward is not None and metrics_of.issubset(metric.tasks)
    ]
    if len(metrics_of) != 1 or not known:
        return None
    best = np.concatenate([one.rewards.max(axis=1) for one in sampled])
    images = [image for one in sampled for image in one.images]
    measured = {metric.name: metric.from_rewards(best) for metric in known}
    if metrics_of == {GROUNDING}:
        is_parsed = np.concatenate([one.parse_ok.any(axis=1) for one in sampled])
        measured["parse_rate"] = np.asarray(is_parsed, dtype=np.float64)
    return Oracle(
        lists=len(best),
        size=next(one.rewards.shape[1] for one in sampled),
        metrics={
            name: Estimate(
                *mean_interval(values, clusters=images, num_resamples=num_resamples), n=len(best)
            )
            for name, values in measured.items()
        },
    )
