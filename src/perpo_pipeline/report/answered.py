"""How many answers are missing or cut off: they count as wrong, and the page says how many."""

from dataclasses import dataclass

import polars as pl

from perpo_pipeline.answers.pipeline import answer_texts
from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.report.inputs import SplitInputs
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.schemas import PREDICTIONS, UNANSWERED


@dataclass(frozen=True)
class Answered:
    """Counts of one model's answers on one split.

    `unanswered`: prompts that could not be answered. `cut_off`: answers that end at the token
    limit. `no_answer`: completions that are all thought, or whose thought never ends.
    """

    model: str
    split: str
    prompts: int
    unanswered: int
    cut_off: int
    no_answer: int

    @property
    def is_complete(self) -> bool:
        """Whether every prompt has a whole answer."""
        return not (self.unanswered or self.cut_off or self.no_answer)


def read_answered(test_set: SplitInputs) -> list[Answered]:
    """The counts of every evaluated model."""
    return [
        _count(model, test_set.split, version) for model, version in test_set.predictions.items()
    ]


def _count(model: str, split: str, version: Version) -> Answered:
    columns = PREDICTIONS.pick("completion", "finish_reason")
    rows = pl.DataFrame(version.table(columns=columns))
    reasons = rows["finish_reason"]
    answered = rows.filter(reasons != UNANSWERED)["completion"]
    texts = answer_texts(answered, Reading.recorded(version.manifest["settings"]))
    return Answered(
        model,
        split,
        rows.height,
        unanswered=int((reasons == UNANSWERED).sum()),
        cut_off=int((reasons == "length").sum()),
        no_answer=texts.null_count(),
    )
