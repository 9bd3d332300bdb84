"""The words that a reader may not know, with their meaning: on hover, on focus, and in a list.

A term of the page is a button whose tip shows while the pointer is on it or it has the focus, so
no script is needed; the glossary at the end of the page holds the terms that were used.
"""

from markupsafe import Markup, escape

MEANINGS = {
    "IoU": "Intersection over union of two boxes: the area that both share over the area that "
    "either covers; 1 if they are equal, 0 if they do not touch.",
    "AP@50": "The share of questions whose box has an IoU of at least 0.5 with the true box. "
    "An answer without a box counts as wrong.",
    "AP@75": "The share of questions whose box has an IoU of at least 0.75 with the true box.",
    "mIoU": "The mean IoU over all questions; an answer without a box counts as 0.",
    "parsed": "The share of answers in which an answer could be read, such as the four numbers "
    "of a box.",
    "out of frame": "The share of answers whose box reaches out of the image.",
    "edit distance": "The fewest characters to insert, delete or replace to turn the answer into "
    "the true text, over the length of the longer one: 0 is equal, 1 shares nothing.",
    "F1": "The harmonic mean of precision and recall of words.",
    "precision": "The share of the answer's words that are in the true text.",
    "recall": "The share of the true text's words that are in the answer.",
    "BLEU": "How many runs of one to four words the answer shares with the true text.",
    "METEOR": "Words shared with the true text, up to word forms and synonyms, less for each "
    "break in their order.",
    "CER": "Character error rate: edits over all pages, over the characters of all true texts.",
    "WER": "Word error rate: edits of words over all pages, over the words of all true texts.",
    "interval": "A 95 % confidence interval: computed in this way on many drawn test sets, 95 of "
    "100 intervals hold the true value. It covers the choice of test images, not the luck of one "
    "training.",
    "p-value": "How often a difference at least as large would appear by chance if there were "
    "none.",
    "borderline": "A 95 % interval that excludes zero beside a p-value of 0.05 or more, or the "
    "reverse. The two ask slightly different questions: the interval follows the skew of the "
    "resampled differences, the p-value counts differences in both directions, or only the "
    "questions on which the two models differ (McNemar). Neither alone is called a gain here.",
    "paired": "Two models compared on the same questions: what is hard for both does not blur "
    "the difference.",
    "too few to say": "The interval of the difference includes zero, and with this many prompts "
    "a true difference of 2 points would be missed too often. The number that would do finds it "
    "with a probability of 80 % in a two-sided test at 5 %, if prompts differ as much as these: "
    "n = (2.80 / 0.02)² × the variance of a prompt's difference (Miller 2024, arXiv:2411.00640).",
    "points": "Percentage points: from 60 % to 62 % is 2 points.",
    "greedy decoding": "The model always writes its most likely next token, so the answer is the "
    "same every time.",
    "reward": "How good an answer is, from 0 to 1, measured against the truth by a fixed rule: "
    "the IoU of its box, or 1 minus its edit distance.",
    "list": "All sampled answers to one question, ranked by reward: what PerPO learns from.",
    "margin": "The largest reward of a list minus its smallest: how much there is to prefer.",
    "pair weight": "How much a pair of answers counts in its list's loss. PerPO: the reward gap "
    "to the power gamma, over the sum for all pairs of the list (eq. 5 of the paper).",
    "best of n": "The answer of highest reward among n samples. Choosing it needs the truth, so "
    "it bounds what training can gain from the model's own samples.",
    "nats": "Log-probabilities with the natural logarithm, summed over an answer's tokens: one "
    "nat more means 2.7 times as likely.",
    "reward accuracy": "The share of a list's ranked pairs whose log-probability ratio to the "
    "base model has the right order; 0.5 is chance.",
    "implicit margin": "How much more likely training made the best answers, minus the same for "
    "the worst, both against the base model.",
    "beta": "The scale on log-probability ratios in the loss: a larger one stays closer to the "
    "base model.",
    "gamma": "The exponent on the reward gap in PerPO's pair weights: 0 weighs all pairs alike, "
    "1 in proportion to the gap.",
    "LoRA": "Training of small added matrices instead of all weights; r is their rank, alpha / r "
    "their scale.",
    "epoch": "One pass over all training lists.",
    "fingerprint": "The name of a version: a hash of all settings and inputs that change it.",
}


class Glossary:
    """Writes terms and remembers which the page has used, in the order of MEANINGS."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def term(self, name: str, shown: str | None = None) -> Markup:
        """A term with its tip; the plain text if it has no entry, such as a user's own metric."""
        text = escape(shown or name)
        if name not in MEANINGS:
            return text
        self._used.add(name)
        tip = escape(MEANINGS[name])
        return Markup(
            f'<span class="term"><button type="button" aria-describedby="{_id(name)}">{text}'
            f'</button><span class="tip" aria-hidden="true">{tip}</span></span>'
        )

    def used(self) -> list[tuple[str, str, str]]:
        """The id, name and meaning of each term on the page."""
        return [(_id(name), name, text) for name, text in MEANINGS.items() if name in self._used]


def _id(name: str) -> str:
    return "term-" + "".join(c if c.isalnum() else "-" for c in name.lower())
