"""Examples before and after training: pictures with boxes, or texts with their differences."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup, escape

from perpo_pipeline.drawing import marks
from perpo_pipeline.drawing.overlay import overlay
from perpo_pipeline.report.differences import EXTRA, MISSING, Piece, differences, shortened
from perpo_pipeline.report.methods import BASE_LABEL
from perpo_pipeline.report.page.contents import Contents
from perpo_pipeline.report.pictures import IMPROVED, UNCHANGED, WORSENED, Answer, Picture

Json = dict[str, Any]

LONG_TEXT, EXCERPT = 500, 320
"""Characters: a longer text is folded, behind an excerpt of its differences."""
IN_ORDER = (IMPROVED, WORSENED, UNCHANGED)


def examples(contents: Contents) -> list[Json]:
    """The data of the section, in the order of a page without choices: by outcome, then by change.

    `by_change` and `by_worst` are the places that the page's two other orders give an example.
    """
    shown = sorted(contents.pictures, key=lambda p: (IN_ORDER.index(p.outcome), -abs(p.change)))
    changes = _places(shown, [-picture.change for picture in shown])
    worst = _places(shown, [picture.after.reward for picture in shown])
    label = contents.main.label if contents.main else ""
    colour = contents.main.colour if contents.main else marks.ANSWER.colour
    return [
        {
            "id": f"example-{at + 1}",
            "picture": picture,
            "by_change": changes[at],
            "by_worst": worst[at],
            **_drawn(picture, label, colour),
            "texts": _texts(picture, label),
        }
        for at, picture in enumerate(shown)
    ]


def example_counts(contents: Contents) -> list[tuple[str, int]]:
    """How many of the shown examples have each outcome."""
    found = [picture.outcome for picture in contents.pictures]
    return [(outcome, found.count(outcome)) for outcome in IN_ORDER]


def marked(pieces: Sequence[Piece]) -> Markup:
    """Pieces of a text as HTML: what is missing as `<del>`, what is extra as `<ins>`."""
    tags = {MISSING: "del", EXTRA: "ins"}
    parts = [
        Markup("<{0}>{1}</{0}>").format(tags[piece.kind], piece.text)
        if piece.kind in tags
        else escape(piece.text)
        for piece in pieces
    ]
    return Markup("").join(parts)


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


def _texts(picture: Picture, label: str) -> list[Json]:
    """The two answers with their differences to the true text; empty if the truth is no text."""
    truth = picture.truth_text
    if truth is None:
        return []
    named = ((BASE_LABEL, picture.before), (label, picture.after))
    return [_text(name, answer, truth) for name, answer in named]


def _text(name: str, answer: Answer, truth: str) -> Json:
    """An answer in full, and an excerpt around its first differences if it is long."""
    pieces = differences(answer.text, truth)
    is_long = max(len(answer.text), len(truth)) > LONG_TEXT
    return {
        "name": name,
        "reward": answer.reward,
        "full": marked(pieces),
        "excerpt": marked(shortened(pieces, most=EXCERPT)) if is_long else None,
        "equal": all(piece.kind not in (EXTRA, MISSING) for piece in pieces),
        "empty": not answer.text.strip(),
    }
