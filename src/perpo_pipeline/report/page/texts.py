"""Answers as HTML with their differences from the true text marked."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from markupsafe import Markup, escape

from perpo_pipeline.report.differences import (
    AGAIN,
    EXTRA,
    MISSING,
    SAME,
    Piece,
    differences,
    in_words,
    shortened,
)

Json = dict[str, Any]

LONG_TEXT, EXCERPT = 500, 320
"""Characters: a longer text is folded, behind an excerpt of its differences."""
SPACES = str.maketrans({" ": "␣", "\t": "⇥", "\n": "↵"})
"""How white space looks that is nothing else but the difference."""


def marked(pieces: Sequence[Piece], *, on_one_line: bool = False) -> Markup:
    """Pieces of a text as HTML: what is missing as `<del>`, what is extra as `<ins>`.

    Both in `<span class="swap">` are characters read wrong; `<span class="moved">` is a line in a
    wrong place, which opens with its number in the truth. `on_one_line`: every line break is a
    sign.
    """
    if on_one_line:
        pieces = [
            replace(p, text=p.text.replace("\n", " ↵ ")) if p.kind == SAME else p for p in pieces
        ]
    parts = []
    for line, group in groupby(pieces, key=lambda piece: piece.line):
        part = list(group)
        inner = _marked(part)
        if line is not None:
            sign = "↻ again line" if part[0].kind == AGAIN else "↕ line"
            number = Markup('<span class="place">{} {}: </span>').format(sign, line)
            inner = Markup('<span class="moved">{}{}</span>').format(number, inner)
        parts.append(inner)
    return Markup("").join(parts)


def _marked(pieces: Sequence[Piece]) -> Markup:
    parts: list[Markup] = []
    for at, piece in enumerate(pieces):
        before = pieces[at - 1].kind if at else SAME
        if piece.kind == SAME:
            parts.append(escape(piece.text))
        elif piece.kind == MISSING:
            parts.append(Markup("<del>{}</del>").format(_visible(piece.text)))
        elif piece.kind == EXTRA and before == MISSING:
            extra = Markup("<ins>{}</ins>").format(_visible(piece.text))
            parts[-1] = Markup('<span class="swap">{}{}</span>').format(parts[-1], extra)
        else:
            parts.append(Markup("<ins>{}</ins>").format(_visible(piece.text)))
    return Markup("").join(parts)


def _visible(text: str) -> str:
    """The text with signs for line breaks; for all white space if there is nothing else."""
    if not text.strip():
        return text.translate(SPACES)
    return text.replace("\n", "↵\n")


def text_beside_truth(answer: str, truth: str, *, any_space: bool = False) -> Json:
    """An answer in full, and an excerpt around its first differences if it is long."""
    pieces = differences(answer, truth, any_space=any_space)
    is_long = max(len(answer), len(truth)) > LONG_TEXT
    return {
        "full": marked(pieces),
        "excerpt": marked(shortened(pieces, most=EXCERPT)) if is_long else None,
        "counted": in_words(pieces),
        "equal": all(piece.kind == SAME and piece.line is None for piece in pieces),
        "empty": not answer.strip(),
    }
