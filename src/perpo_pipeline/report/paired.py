"""The methods compared on the same test prompts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.evaluate.compare import paired_row
from perpo_pipeline.evaluate.metrics import (
    ANY_NUMBER,
    GROUNDING,
    METRICS,
    POINTING,
    reward_metrics,
    task_of_prompt,
)
from perpo_pipeline.evaluate.statistics import prompts_needed
from perpo_pipeline.report.inputs import SplitInputs
from perpo_pipeline.report.methods import ReportedMethod
from perpo_pipeline.store.schemas import PROMPTS, REPORT

Floats = npt.NDArray[np.float64]

TO_SHOW = 0.02
"""The difference for which the page says how many prompts would show it: 2 points."""


@dataclass(frozen=True)
class Outcomes:
    """The prompts of a split, n rows, and each variant's rewards on them, `(n,)`, in one order."""

    split: str
    prompts: pl.DataFrame
    rewards: dict[str, Floats]

    @property
    def task(self) -> str | None:
        """The task, as METRICS names it, if every question asks for boxes alike, else None."""
        (task, *others) = self.prompts["task"].unique().to_list()
        return task if task in (GROUNDING, *ANY_NUMBER, POINTING) and not others else None

    @property
    def is_grounding(self) -> bool:
        """Whether every question asks for one region."""
        return self.task == GROUNDING

    def of(self, method: ReportedMethod) -> list[Floats]:
        """The rewards of each of the method's variants."""
        return [self.rewards[variant] for variant in method.variants]


@dataclass(frozen=True)
class Comparison:
    """A paired difference `better` - `worse`: one row of the `report` artifact.

    `test` names the source of the two-sided p-value (`statistics.compare_paired`). `needed` is how
    many such prompts would show a difference of TO_SHOW (`statistics.prompts_needed`); only the
    page has it.
    """

    metric: str
    better: str
    worse: str
    difference: float
    low: float
    high: float
    p_value: float
    test: str
    n: int
    split: str
    needed: int | None = None

    @property
    def is_settled(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    def row(self) -> dict[str, Any]:
        """The comparison as a REPORT row."""
        return {name: value for name, value in asdict(self).items() if name in REPORT.columns.names}


def read_outcomes(test_set: SplitInputs) -> Outcomes:
    """The rewards of all evaluated variants, aligned by prompt."""
    columns = PROMPTS.pick("prompt_id", "dataset", "split", "task", "image_sha256", role="truth")
    prompts = pl.DataFrame(test_set.prompts.table(columns=columns)).select(
        "prompt_id", "dataset", "split", "image_sha256", task=task_of_prompt()
    )
    rewards = {}
    for variant, version in test_set.predictions.items():
        rows = pl.DataFrame(version.table(columns=["prompt_id", "reward"]))
        joined = prompts.join(rows, on="prompt_id", how="left", maintain_order="left")
        if rows.height != prompts.height or joined["reward"].null_count():
            raise ArtifactError(
                f"the predictions of {variant} cover {rows.height} prompts, which are not exactly "
                f"the {prompts.height} test prompts",
                where=str(version.path),
                fix=f"remove them and run: {version.remake()}",
            )
        rewards[variant] = joined["reward"].to_numpy()
    return Outcomes(test_set.split, prompts, rewards)


def compare(
    outcomes: Outcomes,
    main: ReportedMethod,
    others: Sequence[ReportedMethod],
    num_resamples: int,
) -> list[Comparison]:
    """`main` minus each other method on the same prompts, in the compared metrics of the task.

    Grounding gives AP@50 and further entries of METRICS; the mean reward is always the last. With
    several seeds each prompt counts with its mean over seeds. The images are the clusters.
    """
    reward = METRICS["mean_reward"]
    metrics = reward_metrics(outcomes.task)
    metrics = [metric for metric in metrics if metric.of_reward is not reward.of_reward]
    images = outcomes.prompts["image_sha256"].to_list()
    found = []
    for metric in [*metrics, reward]:
        ours = np.mean([metric.from_rewards(r) for r in outcomes.of(main)], axis=0)
        for other in others:
            theirs = np.mean([metric.from_rewards(r) for r in outcomes.of(other)], axis=0)
            compared = paired_row(ours, theirs, images, num_resamples)
            names = (metric.name, main.name, other.name)
            needed = prompts_needed(ours, theirs, TO_SHOW, images)
            found.append(Comparison(*names, **compared, split=outcomes.split, needed=needed))
    return found
