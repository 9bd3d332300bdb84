"""Sentences made from the numbers, which claim no more than the numbers show."""

from dataclasses import dataclass

from perpo_pipeline.evaluate.compare import p_text
from perpo_pipeline.evaluate.metric import Unit
from perpo_pipeline.evaluate.metrics import find_metric
from perpo_pipeline.report.paired import TO_SHOW, Comparison
from perpo_pipeline.report.results import Estimate

SPACE = "\u00a0"
"""A space at which a line does not break."""


@dataclass(frozen=True)
class MetricFormat:
    """How the page writes a metric of METRICS."""

    label: str
    unit: Unit
    higher_is_better: bool

    @property
    def axis(self) -> str:
        """The label of an axis: the metric with its unit."""
        return f"{self.label}, {self.unit.symbol}" if self.unit.symbol else self.label

    @property
    def directed(self) -> str:
        """`axis`, which says so if lower is better."""
        return self.axis if self.higher_is_better else f"{self.axis} (lower is better)"

    @property
    def points(self) -> str:
        """The unit of a difference: points for per cent, else the metric's own; may be empty."""
        return "points" if self.unit.symbol == "%" else self.unit.symbol

    def number(self, value: float) -> str:
        """The value as the page writes it, without the unit's symbol."""
        return self.unit.number(value)

    def signed(self, value: float) -> str:
        """A difference, with its sign."""
        return self.unit.signed(value)

    def interval(self, low: float, high: float, *, signed: bool = False) -> str:
        """Both bounds in brackets."""
        write = self.signed if signed else self.number
        return f"[{write(low)},{SPACE}{write(high)}]"

    def judged(self, difference: float) -> str:
        """Whether a difference is "better" or "worse"."""
        return "better" if (difference > 0) == self.higher_is_better else "worse"

    def full(self, estimate: Estimate) -> str:
        """Value, unit and interval."""
        symbol = f"{SPACE}{self.unit.symbol}" if self.unit.symbol else ""
        interval = self.interval(estimate.low, estimate.high)
        return f"{self.number(estimate.value)}{symbol} {interval}"


def format_of(name: str) -> MetricFormat:
    """How the page writes a metric; one that METRICS lacks keeps its name and counts as a share."""
    metric = find_metric(name)
    unit = metric.in_report or metric.unit
    return MetricFormat(metric.label, unit, metric.higher_is_better is not False)


def verdict(
    metric: str, label: str, base: Estimate, after: Estimate, paired: Comparison | None
) -> str:
    """One sentence on what training changed, as firm as the intervals allow.

    If the intervals overlap, `paired` decides: the difference on the same prompts, in this metric
    or in the mean reward, is a gain or a loss if its interval and its p-value both show one.
    Without it nothing is said. A difference that is not shown is never called no change.
    """
    how = format_of(metric)
    change = f"{how.label} from {how.full(base)} to {how.full(after)}"
    if after.low > base.high or after.high < base.low:
        verb = "raises" if after.value > base.value else "lowers"
        gained = (after.value > base.value) == how.higher_is_better
        end = "" if gained else ", so the model became worse"
        if gained and not how.higher_is_better:
            end = ", so the model became better"
        return f"{label} {verb} {change}; the 95{SPACE}% intervals do not overlap{end}."
    start = f"{label} changes {change}"
    if after.value == base.value:
        start = f"{label} leaves {how.label} at {how.full(after)}"
    if paired is None:
        return f"{start}; the 95{SPACE}% intervals overlap."
    if paired.low != paired.low or paired.high != paired.high:
        return f"{start}; there are too few images for an interval."
    of = "" if paired.metric == metric else f" in {format_of(paired.metric).label}"
    if paired.is_settled:
        gained = (paired.difference > 0) == format_of(paired.metric).higher_is_better
        return (
            f"{start}; the 95{SPACE}% intervals overlap, but the paired difference{of} is "
            f"{'a gain' if gained else 'a loss'} whose interval excludes zero."
        )
    if paired.is_borderline:
        return (
            f"{start}; the 95{SPACE}% intervals overlap, and the paired difference{of} is "
            f"{borderline(paired)}."
        )
    shown = f"the interval of the paired difference{of} includes zero: {unsettled(paired)}"
    return f"{start}, and {shown}."


def borderline(paired: Comparison) -> str:
    """What a difference is that only one of interval and p-value shows, without a full stop."""
    p = p_value(paired.p_value)
    includes = "excludes" if paired.excludes_zero else "includes"
    return f"borderline: its interval {includes} zero, but {p}"


def unsettled(paired: Comparison) -> str:
    """What a difference that is not shown means, without a full stop.

    Below the number of prompts that would show a difference of TO_SHOW with a probability of 80 %
    there are too few to say.
    """
    if paired.is_borderline:
        return borderline(paired)
    step, needed = points_to_show(paired.metric), paired.needed
    if needed is None:
        same = f"both gave the same result on each of the {paired.n:,} prompts"
        return f"too few to say from {paired.n:,} prompts" if paired.difference else same
    if needed > paired.n:
        about = f"about {_rounded(needed):,} prompts would show a difference of {step}"
        return f"too few to say ({about}, this run has {paired.n:,})"
    return f"no difference is shown, and {paired.n:,} prompts are enough to show one of {step}"


def points_to_show(metric: str) -> str:
    """TO_SHOW in the unit of the metric."""
    how = format_of(metric)
    return f"{how.unit.factor * TO_SHOW:g}{how.points and SPACE + how.points}"


def _rounded(number: int) -> int:
    """To two digits, upwards: the spread is known no better than that."""
    step = int(10 ** max(0, len(str(number)) - 2))
    return -(-number // step) * step


def paired_sentence(paired: Comparison) -> str:
    """The difference on the same prompts, with its interval, and which direction is better."""
    how = format_of(paired.metric)
    end = "" if how.higher_is_better else " (lower is better)"
    return (
        f"On the same {paired.n:,} prompts, the difference in {how.label} is "
        f"{how.signed(paired.difference)} {how.points and how.points + ' '}"
        f"{how.interval(paired.low, paired.high, signed=True)}{end}."
    )


def p_value(p: float) -> str:
    """A p-value with its relation sign and three decimals."""
    text = p_text(p)
    return f"p{SPACE}{text}" if text.startswith("<") else f"p{SPACE}={SPACE}{text}"


def other_image_sentence(metric: str, label: str, seeing: Estimate, other: Estimate) -> str:
    """One sentence on the metric with the images of other prompts."""
    how = format_of(metric)
    return (
        f"With the image of another prompt, {how.label} of {label} is {how.full(other)} "
        f"instead of {how.number(seeing.value)} (n = {other.n:,})."
    )


def duration(seconds: float) -> str:
    """A duration in the unit that suits it: seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
