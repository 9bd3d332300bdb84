"""Parses a judge's replies: one function per form of reply, None if a reply is not definite.

Nothing is guessed: a reply with no number, several different numbers or numbers out of range is
unparsed. What a reasoning model writes before its reply is ignored (answers/pipeline.py), and so
are tags around an answer.
"""

import re

from perpo_pipeline.answers.pipeline import answer_text
from perpo_pipeline.answers.settings import Reading

Scores = list[float]

_READING = Reading()

_GAP = r"[\s:=,;*|-]{1,10}(?<!-)"  # does not skip a minus sign before a number
_OF_5 = r"(\d++)(?:/5(?!\d))?+"
_RATED = re.compile(
    rf"\b(first|second)\s+answer{_GAP}accuracy{_GAP}{_OF_5}{_GAP}adherence{_GAP}{_OF_5}"
    rf"{_GAP}truthfulness{_GAP}{_OF_5}(?![.,/]?\d)",
    re.IGNORECASE,
)
_BETTER = re.compile(rf"\bbetter{_GAP}(\d++)(?![.,/]?\d)", re.IGNORECASE)
_TWO_NUMBERS = re.compile(r"(\d++(?:\.\d++)?+)(?:\s*,\s*|\s+)(\d++(?:\.\d++)?+)")
_NUMBER = r"[*\s]*:[*\s]*(-?\d++(?:\.\d++)?+(?:[ \t]*[-–][ \t]*\d++)?+)(?!,\d|\s*%)"
_RATING = re.compile(rf"\brating{_NUMBER}(?!\s*/\s*(?!6(?!\d)))", re.IGNORECASE)
_SCORE = re.compile(rf"\bscore{_NUMBER}(?!\s*/)", re.IGNORECASE)
_ALONE = re.compile(r"\d++(?:\.\d++)?+")


def parse_comparison(reply: str) -> Scores | None:
    """Seven numbers: accuracy, adherence and truthfulness of the first and of the second answer
    (1 to 5), and which is better (1, 2, or 0 for neither).

    A number that is repeated must be the same each time.
    """
    text = _after_thinking(reply)
    rated = {(which.lower(), *numbers) for which, *numbers in _RATED.findall(text)}
    better = set(_BETTER.findall(text))
    if [which for which, *_ in sorted(rated)] != ["first", "second"] or len(better) != 1:
        return None
    scores = [float(number) for _, *numbers in sorted(rated) for number in numbers]
    scores.append(float(better.pop()))
    fits = all(1 <= score <= 5 for score in scores[:-1]) and scores[-1] in (0, 1, 2)
    return scores if fits else None


def parse_two_ratings(reply: str) -> Scores | None:
    """Two numbers from 1 to 10, alone on the first line (LLaVA-Bench's form)."""
    lines = _after_thinking(reply).strip().splitlines()
    found = _TWO_NUMBERS.fullmatch(lines[0].strip()) if lines else None
    if found is None:
        return None
    scores = [float(number) for number in found.groups()]
    return scores if all(1 <= score <= 10 for score in scores) else None


def parse_rating(reply: str) -> Scores | None:
    """One whole number from 0 to 6: the only one after `rating:` (MMHal-Bench's form)."""
    score = _only(_RATING, _after_thinking(reply))
    return None if score is None or score not in range(7) else [score]


def parse_grade(reply: str) -> Scores | None:
    """One number from 0 to 1: the only one after `score:`, or the whole reply (MM-Vet's form)."""
    text = _after_thinking(reply).strip()
    score = float(text) if _ALONE.fullmatch(text) else _only(_SCORE, text)
    return None if score is None or not 0 <= score <= 1 else [score]


def _after_thinking(reply: str) -> str:
    """The reply without the thoughts; empty if the token limit cut the thoughts."""
    return answer_text(reply, _READING) or ""


def _only(pattern: re.Pattern[str], text: str) -> float | None:
    """The number that all matches agree on; None for no number, several, or a range such as 3-4."""
    found = {_number(match) for match in pattern.findall(text)}
    return found.pop() if len(found) == 1 else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
