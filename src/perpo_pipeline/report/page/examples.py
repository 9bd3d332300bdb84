"""Examples before and after training: pictures with boxes, or texts with their differences."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from perpo_pipeline.drawing import marks
from perpo_pipeline.drawing.overlay import overlay
from perpo_pipeline.evaluate.metrics import OCR
from perpo_pipeline.report.methods import BASE_LABEL
from perpo_pipeline.report.page.contents import Contents
from perpo_pipeline.report.page.texts import LONG_TEXT, text_beside_truth
from perpo_pipeline.report.pictures import (
    IMPROVED,
    UNCHANGED,
    WORSENED,
    Answer,
    Chosen,
    Picture,
)

Json = dict[str, Any]

IN_ORDER = (IMPROVED, WORSENED, UNCHANGED)
AT_RANDOM, GAINS, LOSSES = "random", "gain", "loss"
NAMES = {AT_RANDOM: "at random", GAINS: "largest gains", LOSSES: "largest losses"}
"""How examples are chosen, as the page's buttons say it."""


def examples(contents: Contents) -> list[Json]:
    """The data of the section, in the order of a page without choices: by outcome, then by change.

    Examples chosen at random come before those chosen for their change.

    `by_change` and `by_worst` are the places that the page's two other orders give an example.
    """
    shown = sorted(
        contents.pictures,
        key=lambda p: (not p.chosen.at_random, IN_ORDER.index(p.outcome), -abs(p.change)),
    )
    changes = _places(shown, [-picture.change for picture in shown])
    worst = _places(shown, [picture.after.reward for picture in shown])
    colour = contents.main.colour if contents.main else marks.ANSWER.colour
    labels = _labels(contents)
    prompts = contents.outcomes.prompts
    pages = set(prompts.filter(prompts["task"] == OCR)["prompt_id"])
    shown_pages = [picture.prompt["prompt_id"] in pages for picture in shown]
    return [
        {
            "id": f"example-{at + 1}",
            "picture": picture,
            "by_change": changes[at],
            "by_worst": worst[at],
            "reasons": _reasons(picture.chosen),
            "why": _why(picture, contents.outcome_counts),
            "measure": "edit distance" if is_page else "reward",
            "before": _measured(picture.before, is_page=is_page),
            "after": _measured(picture.after, is_page=is_page),
            **_drawn(picture, labels[1], colour),
            **_texts(picture, labels, contents, is_page=is_page),
        }
        for at, (picture, is_page) in enumerate(zip(shown, shown_pages, strict=True))
    ]


def example_counts(contents: Contents) -> list[tuple[str, str, int]]:
    """How many of the shown examples were chosen in each way, if in several, and each outcome."""
    chosen = [_reasons(picture.chosen) for picture in contents.pictures]
    found = [picture.outcome for picture in contents.pictures]
    ways = [(way, label, sum(way in one for one in chosen)) for way, label in NAMES.items()]
    several = ways if any(count for _, _, count in ways[1:]) else []
    return [*several, *((outcome, outcome, found.count(outcome)) for outcome in IN_ORDER)]


def _labels(contents: Contents) -> list[str]:
    """The names of the models before and after training."""
    return [BASE_LABEL, contents.main.label if contents.main else ""]


def _reasons(chosen: Chosen) -> list[str]:
    found = {AT_RANDOM: chosen.at_random, GAINS: chosen.gain, LOSSES: chosen.loss}
    return [name for name, is_so in found.items() if is_so]


def _why(picture: Picture, counts: Mapping[str, int]) -> str:
    """How an example was chosen, such as "chosen as the 2nd largest gain of 412"; empty for boxes,
    which are all chosen at random.
    """
    chosen = picture.chosen
    if not (chosen.gain or chosen.loss):
        return "chosen at random" if picture.truth_text is not None else ""
    start = "chosen at random, and the" if chosen.at_random else "chosen as the"
    if chosen.gain:
        return f"{start} {_ordinal(chosen.gain)}largest gain of {counts[IMPROVED]:,}"
    return f"{start} {_ordinal(chosen.loss or 1)}largest loss of {counts[WORSENED]:,}"


def _ordinal(place: int) -> str:
    """Such as "2nd "; empty for the first."""
    if place == 1:
        return ""
    ends = {1: "st", 2: "nd", 3: "rd"} if place // 10 % 10 != 1 else {}
    return f"{place}{ends.get(place % 10, 'th')} "


def _measured(answer: Answer, *, is_page: bool) -> str:
    """The reward of an answer, or the edit distance that it follows from."""
    return f"{1 - answer.reward if is_page else answer.reward:.2f}"


def _places(shown: Sequence[Picture], keys: Sequence[float]) -> list[int]:
    order = sorted(range(len(shown)), key=lambda at: keys[at])
    return [order.index(at) for at in range(len(shown))]


def _drawn(picture: Picture, label: str, colour: str) -> Json:
    """A wide line for the truth, a thin one for the method on it, the base's dashes on top.

    So each of them can be seen where all three are equal.
    """
    prompt = picture.prompt
    after = replace(marks.ANSWER, colour=colour, dash=marks.SOLID, line_px=2.0)
    before = replace(marks.BEFORE, line_px=2.0)
    wide = replace(marks.TRUTH, line_px=5.0)
    drawn = [replace(mark, style=wide) for mark in marks.truth_marks(prompt)]
    for answer, style, name in (
        (picture.after, after, label),
        (picture.before, before, BASE_LABEL),
    ):
        if answer.box is not None:
            drawn.append(marks.box(answer.box, style, name))
    size = (prompt["width"], prompt["height"])
    return {
        "small": Markup(overlay(drawn, *size, labels=False)),
        "large": Markup(overlay(drawn, *size)),
        "alt": f"{picture.question}. {marks.describe(drawn)}".rstrip(". ") + ".",
    }


def _texts(picture: Picture, labels: Sequence[str], contents: Contents, *, is_page: bool) -> Json:
    """The answers with their differences to the true text; none if the truth is no text."""
    truth = picture.truth_text
    if truth is None:
        return {"texts": [], "others": [], "truth_is_long": False}
    names = {row.method.variants[0]: row.method.label for row in contents.results}

    def text(name: str, answer: Answer) -> Json:
        measured = _measured(answer, is_page=is_page)
        found = text_beside_truth(answer.text, truth, any_space=contents.any_space)
        return {"name": name, "measured": measured, **found}

    return {
        "texts": list(map(text, labels, (picture.before, picture.after))),
        "others": [text(names[variant], answer) for variant, answer in picture.others.items()],
        "truth_is_long": len(truth) > LONG_TEXT,
    }
