"""Where an answer differs from the true text: characters, and whole lines in a wrong place.

1. Words that both texts have in the same order stay in place (their longest common sequence).
2. Lines of the truth that are left are searched for in what is left of the answer: those found
   stand in a wrong place. A line that is left of the answer, but is in its place, too, is repeated.
3. What remains between two words in place is compared character by character.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import numpy as np
from rapidfuzz import fuzz, process
from rapidfuzz.distance import LCSseq, Levenshtein

Kind = Literal["same", "extra", "missing", "again"]
SAME: Kind = "same"
EXTRA: Kind = "extra"
MISSING: Kind = "missing"
AGAIN: Kind = "again"

# Scripts that are written without spaces: each character is a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")

LEAST_LINE = 4
"""A shorter line, in characters, is never searched for elsewhere: it would be found by chance."""
LEAST_SHARE = 0.6
"""The share of a true line that must be missing at its place for it to be searched for."""
ALIKE = 65.0
"""Two lines are the same line, read with errors, from this similarity (rapidfuzz.fuzz.ratio)."""

Span = tuple[int, int]


@dataclass(frozen=True)
class Piece:
    """A part of a text: `same` as the truth, `extra` (only the answer has it) or `missing`.

    `line`: the part belongs to this line of the truth, from 1, which stands in a wrong place; None
    in its place. `again`: a line that the answer repeats, with its number.
    """

    kind: Kind
    text: str
    line: int | None = None


@dataclass(frozen=True)
class _Line:
    """What a gap has of a line of its text: the span, the gap, the line's number from 1."""

    start: int
    end: int
    gap: int
    number: int


@dataclass(frozen=True)
class _Elsewhere:
    """A line of the answer that stands in a wrong place, or that it repeats (`true` is None)."""

    span: Span
    number: int
    true: Span | None


def differences(answer: str, truth: str, *, any_space: bool = False) -> list[Piece]:
    """The answer in pieces, with what it lacks of the truth.

    Without the missing pieces the result is exactly the answer. A missing piece followed by an
    extra one stands for characters read wrong. `any_space`: white space equals any other.
    """
    gaps = _gaps(answer, truth)
    elsewhere = _lines_elsewhere(answer, truth, gaps)
    pieces: list[Piece] = []
    at = 0
    for ours, theirs in gaps:
        pieces.append(Piece(SAME, answer[at : ours[0]]))
        inside = [one for one in elsewhere if ours[0] <= one.span[0] < ours[1]]
        gone = [one.true for one in elsewhere if one.true and theirs[0] <= one.true[0] < theirs[1]]
        left = _without(truth, theirs, gone)
        rest, lines = _cut(answer, ours, left, inside)
        placed = [(offset, _elsewhere(line, truth, any_space)) for offset, line in lines]
        pieces += _with_lines(_edits(rest, left, any_space), placed)
        at = ours[1]
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
            kept += [
                replace(piece, text=piece.text[:room]),
                Piece(SAME, f" [… {left:,} characters]"),
            ]
            break
        kept.append(piece)
        room -= len(piece.text)
    return kept


def in_words(pieces: Sequence[Piece]) -> str:
    """The differences in numbers, such as "3 characters wrong, 1 line in a wrong place"."""
    wrong = missing = extra = 0
    for at, piece in enumerate(pieces):
        size = len(piece.text)
        before = pieces[at - 1] if at else None
        if piece.kind == MISSING:
            missing += size
        elif piece.kind == EXTRA:
            instead = len(before.text) if before and before.kind == MISSING else 0
            wrong += min(size, instead)
            missing -= min(size, instead)
            extra += max(0, size - instead)
    moved = len({piece.line for piece in pieces if piece.line and piece.kind == SAME})
    again = sum(piece.kind == AGAIN for piece in pieces)
    counts = [
        (wrong, "character", "wrong"),
        (missing, "character", "missing"),
        (extra, "character", "too many"),
        (moved, "line", "in a wrong place"),
        (again, "line", "repeated"),
    ]
    named = [f"{n:,} {noun}{'s' * (n != 1)} {what}" for n, noun, what in counts if n]
    return ", ".join(named) or "no differences"


def _gaps(answer: str, truth: str) -> list[tuple[Span, Span]]:
    """The spans (of the answer, of the truth) before, between and after the words in place."""
    ours, theirs = ([m.span() for m in _WORD.finditer(text)] for text in (answer, truth))
    words = [truth[a:b] for a, b in theirs], [answer[a:b] for a, b in ours]
    equal = [edit for edit in LCSseq.opcodes(*words) if edit.tag == "equal"]
    gaps, a, t = [], 0, 0
    for edit in equal:
        for i in range(edit.dest_end - edit.dest_start):
            mine, other = ours[edit.dest_start + i], theirs[edit.src_start + i]
            gaps.append(((a, mine[0]), (t, other[0])))
            a, t = mine[1], other[1]
    return [*gaps, ((a, len(answer)), (t, len(truth)))]


def _lines_elsewhere(
    answer: str, truth: str, gaps: Sequence[tuple[Span, Span]]
) -> list[_Elsewhere]:
    """Lines that the answer has in a wrong place, or repeats, in the order of the answer."""
    whole = {line.number: truth[line.start : line.end] for line in _lines(truth, [(0, len(truth))])}
    lost = [
        line
        for line in _lines(truth, [theirs for _, theirs in gaps])
        if line.end - line.start >= LEAST_SHARE * len(whole[line.number])
    ]
    ours = _lines(answer, [span for span, _ in gaps])
    texts = [answer[line.start : line.end] for line in ours]
    pairs = _pairs([truth[line.start : line.end] for line in lost], texts)
    found = [
        _Elsewhere((ours[j].start, ours[j].end), lost[i].number, (lost[i].start, lost[i].end))
        for j, i in pairs.items()
        if lost[i].gap != ours[j].gap  # else the line is in place, with errors
    ]
    kept = {n: text for n, text in whole.items() if n not in {line.number for line in lost}}
    for j, line in enumerate(ours):
        start, end = gaps[line.gap][1]
        if j in pairs or 2 * len(truth[start:end].strip()) > len(texts[j]):  # a line with errors
            continue
        best = process.extractOne(texts[j], kept, scorer=fuzz.ratio, score_cutoff=ALIKE)
        if best is not None:
            found.append(_Elsewhere((line.start, line.end), best[2], None))
    return sorted(found, key=lambda one: one.span)


def _lines(text: str, spans: Iterable[Span]) -> list[_Line]:
    """The lines in these spans, without white space at their ends, of LEAST_LINE and more."""
    breaks = [m.start() for m in re.finditer("\n", text)]
    return [
        _Line(start + m.start(), start + m.end(), gap, bisect_left(breaks, start + m.start()) + 1)
        for gap, (start, end) in enumerate(spans)
        for m in re.finditer(r"\S[^\n]*\S", text[start:end])
        if m.end() - m.start() >= LEAST_LINE
    ]


def _pairs(true: Sequence[str], ours: Sequence[str]) -> dict[int, int]:
    """The true line of each line of the answer that is like one; each once, best pairs first."""
    if not true or not ours:
        return {}
    scores = process.cdist(true, ours, scorer=fuzz.ratio, score_cutoff=ALIKE)
    rows, columns = scores.nonzero()
    best_first = np.argsort(-scores[rows, columns], kind="stable")
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for i, j in zip(rows[best_first].tolist(), columns[best_first].tolist(), strict=True):
        if j not in pairs and i not in taken:
            pairs[j] = i
            taken.add(i)
    return pairs


def _without(truth: str, span: Span, gone: Iterable[Span]) -> str:
    """The truth in a span, without lines that stand elsewhere and one white space beside each."""
    at, kept = span[0], ""
    for start, end in sorted(gone):
        kept += truth[at:start]
        after = truth[end : span[1]][:1]
        at = end + after.isspace()
        if not after and kept[-1:].isspace():
            kept = kept[:-1]
    return kept + truth[at : span[1]]


def _cut(
    answer: str, span: Span, theirs: str, inside: Iterable[_Elsewhere]
) -> tuple[str, list[tuple[int, tuple[str, _Elsewhere]]]]:
    """A gap without the lines that belong elsewhere; each line with its offset in that rest.

    A line takes one white space with it, so that none is left over: that after it, or that before
    it if the rest then equals `theirs`, the truth in this gap.
    """
    rest, lines, at = "", [], span[0]
    for one in inside:
        start, end = one.span
        before, after = answer[at:start], answer[end : span[1]]
        if before[-1:].isspace() and (
            not after[:1].isspace() or rest + before[:-1] + after == theirs
        ):
            start -= 1
        elif after[:1].isspace():
            end += 1
        rest += answer[at:start]
        lines.append((len(rest), (answer[start:end], one)))
        at = end
    return rest + answer[at : span[1]], lines


def _with_lines(
    pieces: Sequence[Piece], lines: Iterable[tuple[int, list[Piece]]]
) -> Iterator[Piece]:
    """The pieces of a gap with other lines put in at their offsets in its answer."""
    waiting, at = list(lines), 0
    for piece in pieces:
        text = piece.text
        while waiting and (
            waiting[0][0] == at or (piece.kind != MISSING and waiting[0][0] < at + len(text))
        ):
            offset, line = waiting.pop(0)
            yield replace(piece, text=text[: offset - at])
            yield from line
            text, at = text[offset - at :], offset
        yield replace(piece, text=text)
        at += len(text) if piece.kind != MISSING else 0
    for _, line in waiting:
        yield from line


def _elsewhere(found: tuple[str, _Elsewhere], truth: str, any_space: bool) -> list[Piece]:
    """A line that belongs elsewhere, or is repeated; white space around it is not marked."""
    text, one = found
    line = text.strip()
    start = text.index(line)
    if one.true is None:
        marked = [Piece(AGAIN, line, one.number)]
    else:
        pieces = _edits(line, truth[slice(*one.true)], any_space)
        marked = [replace(piece, line=one.number) for piece in pieces]
    return [Piece(SAME, text[:start]), *marked, Piece(SAME, text[start + len(line) :])]


def _edits(ours: str, theirs: str, any_space: bool) -> list[Piece]:
    """Two texts character by character: the fewest edits, without equal parts that are chance.

    An equal part is taken for chance if it is shorter than the edits on both sides.
    """
    if any_space and ours.isspace() and theirs.isspace():
        return [Piece(SAME, ours)]
    blocks: list[tuple[bool, str, str]] = []  # equal, theirs, ours
    for edit in Levenshtein.opcodes(theirs, ours):
        parts = theirs[edit.src_start : edit.src_end], ours[edit.dest_start : edit.dest_end]
        blocks.append((edit.tag == "equal", *parts))
        if len(blocks) > 1 and not blocks[-1][0] and not blocks[-2][0]:
            blocks[-2:] = [_joined(blocks[-2:])]
        while len(blocks) > 2 and not blocks[-1][0] and _is_chance(*blocks[-3:]):
            blocks[-3:] = [_joined(blocks[-3:])]
    pieces = []
    for equal, lost, text in blocks:
        pieces += [Piece(SAME, text)] if equal else [Piece(MISSING, lost), Piece(EXTRA, text)]
    return pieces


def _joined(blocks: Sequence[tuple[bool, str, str]]) -> tuple[bool, str, str]:
    return False, "".join(b[1] for b in blocks), "".join(b[2] for b in blocks)


def _is_chance(*blocks: tuple[bool, str, str]) -> bool:
    before, equal, after = (max(len(theirs), len(ours)) for _, theirs, ours in blocks)
    return equal < min(before, after)


def _merged(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbours of one kind and line as one piece; no empty ones."""
    kept = (piece for piece in pieces if piece.text)
    return [
        Piece(kind, "".join(piece.text for piece in group), line)
        for (kind, line), group in groupby(kept, key=lambda piece: (piece.kind, piece.line))
    ]


def _short(piece: Piece, context: int) -> Piece:
    words = re.findall(r"\s*\S+(?:\s+$)?", piece.text)
    left = len(words) - 2 * context
    if left < context:
        return piece
    first, last = "".join(words[:context]), "".join(words[-context:])
    return replace(piece, text=f"{first} [… {left} words as in the truth …]{last}")
