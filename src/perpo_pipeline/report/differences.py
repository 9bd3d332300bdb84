"""Where an answer differs from the true text, word by word."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from rapidfuzz.distance import Levenshtein

Kind = Literal["same", "extra", "missing"]
SAME: Kind = "same"
EXTRA: Kind = "extra"
MISSING: Kind = "missing"

# Scripts that are written without spaces: each character is compared by itself.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"\s+|[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")


@dataclass(frozen=True)
class Piece:
    """A part of a text: `same` as the truth, `extra` (only the answer has it) or `missing`."""

    kind: Kind
    text: str


def differences(answer: str, truth: str) -> list[Piece]:
    """The answer in pieces, with what it lacks of the truth; the fewest changed words.

    Without the missing pieces the result is exactly the answer. Any white space equals any other.
    """
    ours, theirs = _TOKEN.findall(answer), _TOKEN.findall(truth)
    pieces = []
    for edit in Levenshtein.opcodes(_compared(theirs), _compared(ours)):
        lost = "".join(theirs[edit.src_start : edit.src_end])
        text = "".join(ours[edit.dest_start : edit.dest_end])
        if edit.tag == "equal":
            pieces.append(Piece(SAME, text))
        else:
            pieces += [Piece(MISSING, lost), Piece(EXTRA, text)]
    return _merged(pieces)


def shortened(pieces: Sequence[Piece], context: int = 6, most: int = 1500) -> list[Piece]:
    """Long equal parts shortened to `context` words at each side; at most `most` characters.

    What is left out is counted in its place: "[... 41 words as in the truth ...]".
    """
    short = [_short(piece, context) if piece.kind == SAME else piece for piece in pieces]
    kept, room = [], most
    for at, piece in enumerate(short):
        if len(piece.text) > room:
            left = sum(len(p.text) for p in pieces[at:]) - room
            kept += [Piece(piece.kind, piece.text[:room]), Piece(SAME, f" [… {left:,} characters]")]
            break
        kept.append(piece)
        room -= len(piece.text)
    return kept


def _compared(tokens: Iterable[str]) -> list[str]:
    return [" " if token.isspace() else token for token in tokens]


def _merged(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbours of one kind as one piece; no empty ones."""
    kept = (piece for piece in pieces if piece.text)
    return [
        Piece(kind, "".join(piece.text for piece in group))
        for kind, group in groupby(kept, key=lambda piece: piece.kind)
    ]


def _short(piece: Piece, context: int) -> Piece:
    words = re.findall(r"\S+\s*", piece.text)
    left = len(words) - 2 * context
    if left < context:
        return piece
    first, last = "".join(words[:context]), "".join(words[-context:])
    return Piece(SAME, f"{first}[… {left} words as in the truth …] {last}")
