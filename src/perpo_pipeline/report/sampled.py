"""The samples of the base model: their rewards, the margins of the lists, the best of n samples."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from perpo_pipeline import advice
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.evaluate.best_of_n import (
    best_of_n_metrics,
    expected_best_of_n,
    task_of_rewards,
)
from perpo_pipeline.evaluate.metric import Metric
from perpo_pipeline.evaluate.metrics import GROUNDING, METRICS
from perpo_pipeline.evaluate.statistics import mean_interval
from perpo_pipeline.report.inputs import Inputs
from perpo_pipeline.report.results import Estimate
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.schemas import PROMPTS

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sampled:
    """The samples and lists of the sampled split; `rewards` and `parse_ok` are `(lists, N)`.

    `task` is the task of METRICS whose metrics follow from these rewards: see `task_of_rewards`.
    """

    rewards: Floats
    parse_ok: npt.NDArray[np.bool_]
    task: str | None
    images: list[str]
    kept_margins: Floats
    dropped_margins: dict[str, Floats]
    kept_by_unparsed_only: int
    min_margin: float | dict[str, float]

    @property
    def metric(self) -> Metric:
        """The metric of the best of n samples: AP@50, the edit distance (OCR) or mean reward."""
        return best_of_n_metrics(self.task)[0]

    def best_of_n(self) -> Floats:
        """The expected `metric` of the best of n = 1..N samples, `(N,)`."""
        return expected_best_of_n(self.rewards, self.metric)


def read_sampled(inputs: Inputs) -> Sampled:
    """The scores of all samples as lists, and the margins of the kept and of the dropped lists."""
    lists = _read_lists(inputs.scores)
    columns = PROMPTS.pick("prompt_id", "task", "image_sha256", role="truth")
    prompts = lists.select("prompt_id").join(
        pl.DataFrame(inputs.sampled_prompts.table(columns=columns)),
        on="prompt_id",
        how="left",
        maintain_order="left",
    )
    preferences = inputs.preferences
    return Sampled(
        rewards=np.array(lists["reward"].to_list()),
        parse_ok=np.array(lists["parse_ok"].to_list()),
        task=task_of_rewards(prompts, inputs.scores.manifest["settings"].get("reward")),
        images=prompts["image_sha256"].to_list(),
        kept_margins=_margins(pl.DataFrame(preferences.table(columns=["margin"]))),
        dropped_margins=_dropped_margins(preferences),
        kept_by_unparsed_only=preferences.manifest["counts"]["kept_by_unparsed_only"],
        min_margin=preferences.manifest["settings"]["min_margin"],
    )


def _read_lists(scores: Version) -> pl.DataFrame:
    """prompt_id with the lists `reward` and `parse_ok`, all of one length."""
    rows = pl.DataFrame(scores.table(columns=["prompt_id", "reward", "parse_ok"]))
    lists = rows.group_by("prompt_id", maintain_order=True).agg("reward", "parse_ok")
    sizes = lists["reward"].list.len().unique().to_list()
    if len(sizes) != 1:
        raise ArtifactError(
            f"the lists have different numbers of samples: {sorted(sizes)}",
            where=str(scores.path),
            fix=f"remove these scores and their samples; then run: {advice.command('sample')} and: "
            + scores.remake(),
        )
    return lists


def _dropped_margins(preferences: Version) -> dict[str, Floats]:
    """The margins of the dropped lists by the reason of the drop."""
    dropped = pl.DataFrame(preferences.table("dropped", columns=["reason", "margin"]))
    groups = sorted(dropped.group_by("reason"), key=lambda item: item[0])
    return {str(reason): _margins(group) for (reason,), group in groups}


def _margins(rows: pl.DataFrame) -> Floats:
    return np.asarray(rows["margin"].drop_nulls().to_numpy(), dtype=np.float64)


def oracle(sampled: Sampled, num_resamples: int) -> dict[str, Estimate]:
    """Metrics of the best of all N samples of each list: an upper bound that needs the truth."""
    best = sampled.rewards.max(axis=1)
    known = [m for m in METRICS.values() if sampled.task in m.tasks and m.of_reward is not None]
    measured = {metric.name: metric.from_rewards(best) for metric in known}
    if sampled.task == GROUNDING:
        measured["parse_rate"] = np.asarray(sampled.parse_ok.any(axis=1), dtype=np.float64)
    return {
        name: Estimate(
            *mean_interval(values, clusters=sampled.images, num_resamples=num_resamples),
            n=len(best),
        )
        for name, values in measured.items()
    }
