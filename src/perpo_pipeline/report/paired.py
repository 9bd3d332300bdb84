"""The methods compared on the same test prompts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.evaluate.compare import paired_row
from perpo_pipeline.evaluate.metric import Metric
from perpo_pipeline.evaluate.metrics import GROUNDING, METRICS, OCR, VQA, task_of_prompt
from perpo_pipeline.evaluate.ocr import FOX_METRICS
from perpo_pipeline.evaluate.statistics import prompts_needed
from perpo_pipeline.evaluate.summarise import ANSWER_COLUMNS, QUESTION_COLUMNS, values_of
from perpo_pipeline.report.inputs import SplitInputs
from perpo_pipeline.report.methods import ReportedMethod
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.schemas import REPORT

Floats = npt.NDArray[np.float64]

TO_SHOW = 0.02
"""The difference for which the page says how many prompts would show it: 2 points."""
LEVEL = 0.05
"""A p-value below it shows a difference, as a 95 % interval does that excludes zero."""


@dataclass(frozen=True)
class Outcomes:
    """The prompts of a split, n rows, and each variant's rewards on them, `(n,)`, in one order.

    `pages` has each variant's FOX_METRICS, `(n,)`, NaN on prompts of other tasks; empty without
    pages.
    """

    split: str
    prompts: pl.DataFrame
    rewards: dict[str, Floats]
    pages: dict[str, dict[str, Floats]] = field(default_factory=dict)

    @property
    def task(self) -> str | None:
        """The task, as METRICS names it, that all prompts have; None if they have several."""
        return next(iter(self.tasks)) if len(self.tasks) == 1 else None

    @property
    def tasks(self) -> set[str]:
        """The tasks of the prompts, as METRICS names them."""
        return set(self.prompts["task"])

    @property
    def is_text(self) -> bool:
        """Whether every answer is a text with a true text."""
        return bool(self.prompts["task"].is_in([OCR, VQA]).all())

    def only(self, *tasks: str) -> "Outcomes":
        """The prompts of these tasks, as METRICS names them, with their rewards and metrics."""
        where = self.prompts["task"].is_in(tasks).to_numpy()
        return Outcomes(
            self.split,
            self.prompts.filter(where),
            {variant: values[where] for variant, values in self.rewards.items()},
            {
                variant: {name: values[where] for name, values in metrics.items()}
                for variant, metrics in self.pages.items()
            },
        )

    @property
    def is_grounding(self) -> bool:
        """Whether every question asks for one region."""
        return self.task == GROUNDING

    def of(self, method: ReportedMethod, metric: Metric) -> Floats:
        """The metric on each prompt, `(n,)`: the mean over the method's variants."""
        if self.task == OCR and metric.name in FOX_METRICS:
            found = [self.pages[variant][metric.name] for variant in method.variants]
        else:
            found = [metric.from_rewards(self.rewards[variant]) for variant in method.variants]
        return np.asarray(np.mean(found, axis=0), dtype=np.float64)


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
    def excludes_zero(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    @property
    def is_settled(self) -> bool:
        """Whether the interval excludes zero and the p-value is below LEVEL."""
        return self.excludes_zero and self.p_value < LEVEL

    @property
    def is_borderline(self) -> bool:
        """Whether only one of the two shows a difference, the interval or the p-value."""
        return self.excludes_zero != (self.p_value < LEVEL)

    def row(self) -> dict[str, Any]:
        """The comparison as a REPORT row."""
        return {name: value for name, value in asdict(self).items() if name in REPORT.columns.names}


def read_outcomes(test_set: SplitInputs) -> Outcomes:
    """The rewards of all evaluated variants, aligned by prompt, and the metrics of their pages."""
    questions = test_set.prompts.table(columns=QUESTION_COLUMNS)
    prompts = pl.DataFrame(questions).select(
        "prompt_id", "dataset", "split", "image_sha256", task=task_of_prompt()
    )
    rewards, pages = {}, {}
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
        if (prompts["task"] == OCR).any():
            pages[variant] = _pages(version, prompts, questions)
    return Outcomes(test_set.split, prompts, rewards, pages)


def _pages(version: Version, prompts: pl.DataFrame, questions: pa.Table) -> dict[str, Floats]:
    """The FOX_METRICS of one variant's answers, in the order of the prompts."""
    rows = pl.DataFrame(version.table(columns=ANSWER_COLUMNS))
    ordered = prompts.select("prompt_id").join(
        rows, on="prompt_id", how="left", maintain_order="left"
    )
    settings = version.manifest["settings"]
    return values_of(
        ordered.to_arrow(),
        questions,
        FOX_METRICS,
        reading=Reading.recorded(settings),
        normalise=settings.get("normalise", ()),
    )


def compare(
    outcomes: Outcomes,
    main: ReportedMethod,
    others: Sequence[ReportedMethod],
    num_resamples: int,
) -> list[Comparison]:
    """`main` minus each other method on the same prompts, in the compared metrics of each task.

    Grounding gives AP@50 and further entries of METRICS, pages the FOX_METRICS, each on the prompts
    that have it; the mean reward of all prompts is always the last. With several seeds each prompt
    counts with its mean over seeds. The images are the clusters.
    """
    found = []
    for part, metric in [*_compared(outcomes), (outcomes, METRICS["mean_reward"])]:
        images = part.prompts["image_sha256"].to_list()
        ours = part.of(main, metric)
        for other in others:
            theirs = part.of(other, metric)
            compared = paired_row(ours, theirs, images, num_resamples)
            names = (metric.name, main.name, other.name)
            needed = prompts_needed(ours, theirs, TO_SHOW, images)
            found.append(Comparison(*names, **compared, split=outcomes.split, needed=needed))
    return found


def _compared(outcomes: Outcomes) -> list[tuple[Outcomes, Metric]]:
    """Each metric with the prompts that have it, without those that equal their mean reward."""
    of_pages = next(iter(outcomes.pages.values()), {})
    found = []
    for metric in METRICS.values():
        tasks = outcomes.tasks & {OCR} if metric.name in of_pages else set()
        if metric.of_reward is not None:
            tasks |= outcomes.tasks.intersection(metric.compared_on)
        is_mean_reward = metric.of_reward is METRICS["mean_reward"].of_reward
        if tasks and not (is_mean_reward and tasks == outcomes.tasks):
            found.append((outcomes.only(*tasks), metric))
    return found
