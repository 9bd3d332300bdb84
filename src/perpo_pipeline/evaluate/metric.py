"""What a metric is: its record, the answers that it measures, and the unit that it is written in.

metrics.py lists all metrics.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from perpo_pipeline.evaluate import ocr
from perpo_pipeline.rewards import builtin

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

NO_VALUE = "n/a"


@dataclass(frozen=True)
class Unit:
    """How a number is written: the value times `factor`, with `decimals`, then `symbol`."""

    symbol: str = "%"
    factor: float = 100.0
    decimals: int = 1

    def number(self, value: float) -> str:
        """The value without the symbol; "n/a" for NaN."""
        return NO_VALUE if value != value else f"{self.factor * value:.{self.decimals}f}"

    def signed(self, value: float) -> str:
        """A difference, with its sign; "n/a" for NaN."""
        return NO_VALUE if value != value else f"{self.factor * value:+.{self.decimals}f}"


PERCENT = Unit()
FRACTION = Unit("", 1.0, 3)
AS_REPORTED = Unit("", 1.0, 3)
"""Another harness's numbers, in its own unit: a fraction, per cent or a sum of points."""


def rating(highest: int) -> Unit:
    """The unit of a judge's ratings."""
    return Unit(f"of {highest}", 1.0, 2)


@dataclass(frozen=True)
class Answers:
    """Answers to m prompts with their truth, as a metric gets them; every field is `(m,)`.

    `rewards` are the IoU where the task is grounding. `texts` are the answers without thoughts and
    tags, "" for none. `truths` are the true texts, "" where a prompt has none. `beyond` says how
    far the region in an answer reaches out of its frame (0 inside, NaN for no region):
    `rewards.builtin.Measured.reach`. `unanswered` marks prompts that could not be answered, None
    where the answers were made elsewhere. `scored` has the same answers with their boxes, for
    metrics of boxes. `fox_compat`: see `ocr.fox_metrics`.
    """

    rewards: Floats
    parsed: Bools
    texts: Sequence[str]
    truths: Sequence[str]
    beyond: Floats
    unanswered: Bools | None = None
    scored: builtin.Answers | None = None
    fox_compat: bool = False

    @cached_property
    def box_lists(self) -> tuple[list[Floats], list[Floats]]:
        """All boxes of each answer and of its truth, `(k, 4)` each; none where it has no text."""
        found = iter(self._scored.where(self.has_text).box_lists())
        boxes = [next(found) if one else np.empty((0, 4)) for one in self.has_text]
        return boxes, self._scored.true_box_lists()

    @cached_property
    def has_text(self) -> Bools:
        """Whether an answer has any text; a prompt that could not be answered has none."""
        texts = self._scored.texts.fill_null("").str.strip_chars()
        return (texts != "").to_numpy()

    @property
    def _scored(self) -> builtin.Answers:
        if self.scored is None:
            raise ValueError("metrics of boxes need `scored`")
        return self.scored

    @cached_property
    def fox(self) -> list[dict[str, float]]:
        """`ocr.fox_metrics` of each answer; computed once, since several metrics read it."""
        pairs = zip(self.texts, self.truths, strict=True)
        return [ocr.fox_metrics(*pair, fox_compat=self.fox_compat) for pair in pairs]


@dataclass(frozen=True)
class Metric:
    """One metric.

    `tasks`: measured on prompts of these tasks, together.
    `of_answers`: Answers -> values `(m,)`, whose mean is the metric, or counts `(m, k)`.
    `statistic`: sums of such counts `(n, k)` -> values `(n,)`.
    `of_reward`: rewards -> values of the same shape; used where only rewards are known, and in
    place of `of_answers` where that is None. Both None: measured by its benchmark's own module.
    `compared_on`: `perpo compare` compares it pair by pair on prompts of these tasks.
    `unit`: how tables in the terminal write it. `in_report`: how the report writes it, None: the
    report leaves it out. `higher_is_better`: None where neither direction is better.
    `only_if_any`: left out where it is 0 on all prompts.
    `missing`: what this machine lacks to measure it, as a message; None if nothing.
    """

    name: str
    label: str
    tasks: tuple[str, ...]
    of_answers: Callable[[Answers], Floats] | None = None
    statistic: Callable[[Floats], Floats] | None = None
    of_reward: Callable[[Floats], Floats] | None = None
    compared_on: tuple[str, ...] = ()
    unit: Unit = PERCENT
    in_report: Unit | None = PERCENT
    higher_is_better: bool | None = True
    only_if_any: bool = False
    missing: Callable[[], str | None] = lambda: None

    def __post_init__(self) -> None:
        if self.compared_on and self.of_reward is None:
            raise ValueError(f"{self.name} is compared pair by pair, which needs `of_reward`")

    @property
    def label_with_unit(self) -> str:
        """As axes and headings name it: `AP@50, %`."""
        return f"{self.label}, {self.unit.symbol}" if self.unit.symbol else self.label

    @property
    def is_measured_here(self) -> bool:
        """Whether `measure` works: its benchmark's own module measures it otherwise."""
        return self.of_answers is not None or self.of_reward is not None

    def measure(self, answers: Answers) -> Floats:
        """Values `(m,)` or counts `(m, k)`: `of_answers`, else `of_reward` of the rewards."""
        return self.of_answers(answers) if self.of_answers else self.from_rewards(answers.rewards)

    def from_rewards(self, rewards: Floats) -> Floats:
        """`of_reward` of rewards of any shape; raises ValueError where that is None."""
        if self.of_reward is None:
            raise ValueError(f"{self.name} does not follow from rewards")
        return self.of_reward(rewards)
