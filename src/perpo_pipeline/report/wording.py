"""Sentences made from the numbers, which claim no more than the numbers show."""

from dataclasses import dataclass

from perpo_pipeline.evaluate.compare import p_text
from perpo_pipeline.report.data import Comparison, Estimate

NO_VALUE = "n/a"
SPACE = "\u00a0"
"""A space at which a line does not break."""


@dataclass(frozen=True)
class Shown:
    """How a metric is shown: label, factor, decimals, and which direction is better."""

    label: str
    scale: float = 100.0
    decimals: int = 1
    higher_is_better: bool = True

    def number(self, value: float) -> str:
        """The value as it stands on the page."""
        return NO_VALUE if value != value else f"{self.scale * value:.{self.decimals}f}"

    def signed(self, value: float) -> str:
        """A difference, with its sign."""
        return NO_VALUE if value != value else f"{self.scale * value:+.{self.decimals}f}"

    def interval(self, low: float, high: float, *, signed: bool = False) -> str:
        """Both bounds in brackets."""
        write = self.signed if signed else self.number
        return f"[{write(low)},{SPACE}{write(high)}]"

    def full(self, estimate: Estimate) -> str:
        """Value, unit and interval."""
        unit = f"{SPACE}%" if self.scale == 100 else ""
        return f"{self.number(estimate.value)}{unit} {self.interval(estimate.low, estimate.high)}"


SHOWN = {
    "ap50": Shown("AP@50"),
    "ap75": Shown("AP@75"),
    "miou": Shown("mIoU"),
    "mean_reward": Shown("mean reward"),
    "edit_distance": Shown("edit distance", 1.0, 3, higher_is_better=False),
    "cer": Shown("CER", 1.0, 3, higher_is_better=False),
    "wer": Shown("WER", 1.0, 3, higher_is_better=False),
    "f1": Shown("F1"),
    "precision": Shown("precision"),
    "recall": Shown("recall"),
    "bleu": Shown("BLEU"),
    "meteor": Shown("METEOR"),
    "accuracy": Shown("accuracy"),
    "mean_set_iou": Shown("mean IoU of sets"),
    "token_f1": Shown("token F1"),
    "exact_match": Shown("exact match"),
    "parse_rate": Shown("parsed"),
}


def shown(metric: str) -> Shown:
    """How a metric is shown; one that is not known keeps its own name, higher is better."""
    return SHOWN.get(metric, Shown(metric))


def verdict(
    metric: str, label: str, base: Estimate, after: Estimate, paired: Comparison | None
) -> str:
    """One sentence on what training changed, as firm as the intervals allow.

    If the intervals overlap, `paired` decides: the difference on the same prompts, in this metric
    or in the mean reward.
    """
    how = shown(metric)
    change = f"{how.label} from {how.full(base)} to {how.full(after)}"
    if after.low > base.high or after.high < base.low:
        verb = "raises" if after.value > base.value else "lowers"
        gained = (after.value > base.value) == how.higher_is_better
        end = "" if gained else ", so the model became worse"
        return f"{label} {verb} {change}; the 95{SPACE}% intervals do not overlap{end}."
    if after.value == base.value:
        return f"{label} leaves {how.label} at {how.full(after)}: this run shows no change."
    start = f"{label} changes {change}"
    if paired is None or paired.low != paired.low or paired.high != paired.high:
        return f"{start}; there are too few images for an interval."
    if paired.low > 0 or paired.high < 0:
        change = "a gain" if paired.difference > 0 else "a loss"
        return (
            f"{start}; the 95{SPACE}% intervals overlap, but the paired difference is {change} "
            "whose interval excludes zero."
        )
    return (
        f"{start}, but the 95{SPACE}% intervals overlap and the interval of the paired difference "
        "includes zero: this run shows no change."
    )


def paired_sentence(paired: Comparison) -> str:
    """The difference on the same prompts, with its interval."""
    how = shown(paired.metric)
    return (
        f"On the same {paired.n:,} prompts, the difference in {how.label} is "
        f"{how.signed(paired.difference)} points "
        f"{how.interval(paired.low, paired.high, signed=True)}."
    )


def p_value(p: float) -> str:
    """A p-value with its relation sign and three decimals."""
    text = p_text(p)
    return f"p{SPACE}{text}" if text.startswith("<") else f"p{SPACE}={SPACE}{text}"


def blindness(metric: str, label: str, seeing: Estimate, other: Estimate) -> str:
    """One sentence on the metric with the images of other prompts."""
    how = shown(metric)
    return (
        f"With the image of another prompt, {how.label} of {label} is {how.full(other)} "
        f"instead of {how.number(seeing.value)} (n = {other.n:,})."
    )


def duration(seconds: float) -> str:
    """A duration in the unit that suits it: seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
