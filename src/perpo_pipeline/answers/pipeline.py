"""From a completion to its answer: the steps that every reader of answers takes, in this order.

1. `take_off_thoughts`: what stands before the end of a thought is no answer.
2. `find_answer`: what stands inside the answer's tags is the answer; without tags, all that is
   left.
3. Read it by its format (reading.py, formats.py): a box, a point, a polygon, a number, or the text.
4. Place it in its frame (placement.py): pixels of the original image.

`settings.Reading` holds the settings of all four. `answer_texts` takes the first two steps for many
texts. A completion without any mark is its own answer, byte by byte. Where a mark was taken off,
the white space at both ends of the answer goes with it. Every step takes time linear in the length
of a text, and no text raises an error.
"""

import re
from collections.abc import Sequence
from typing import TypeAlias, cast

import polars as pl
import pyarrow as pa

from perpo_pipeline.answers.settings import ANSWER_TAG, THOUGHTS, Reading, Thinking

Texts: TypeAlias = Sequence[str | None] | pl.Series | pa.Array | pa.ChunkedArray

INNER_ANSWER = ("<|begin_of_box|>", "<|end_of_box|>")
"""What GLM-4.1V and 4.5V write around the answer proper, inside `<answer>` or without it.

An answer may have several such spans, as one for each box.
"""


def answer_text(completion: str, reading: Reading) -> str | None:
    """The text of the answer in one completion; None if there is no answer."""
    return cast(str | None, answer_texts([completion], reading)[0])


def answer_texts(completions: Texts, reading: Reading) -> pl.Series:
    """The text of the answer in each of n completions; null where there is no answer.

    A null completion stays null.
    """
    series = as_series(completions)
    marks = _marks(reading)
    if reading.thinking == "opened":
        is_marked = series.is_not_null()
    elif not marks:
        return series
    else:
        is_marked = series.str.contains(_any_of(marks)).fill_null(False)
    if not is_marked.any():
        return series
    rows = is_marked.arg_true()
    found = find_answer(take_off_thoughts(series.gather(rows), reading.thinking), reading)
    return series.clone().scatter(rows, found.str.strip_chars())


def take_off_thoughts(texts: pl.Series, thinking: Thinking) -> pl.Series:
    """What follows the last end of a thought; null where a thought has no end."""
    if thinking == "none":
        return texts
    opening, closing = (_any_of(marks) for marks in zip(*THOUGHTS, strict=True))
    text = pl.col("text")
    left = text.str.replace(rf"(?s)^.*{closing}", "")
    is_open = left.str.contains(opening)
    if thinking == "opened":
        is_open |= ~text.str.contains(closing)
    return _select(texts, pl.when(~is_open).then(left))


def find_answer(texts: pl.Series, reading: Reading) -> pl.Series:
    """What stands inside the answer's tag: the innermost of the first pair, or of the last.

    A missing opening tag stands at the start of the text, a missing closing tag at its end; a text
    without the tag is all answer. Inside it, all that stands from the first of `INNER_ANSWER` to
    the last is the answer, with a space for each of these marks between.
    """
    if reading.tag is None:
        return texts
    opening, closing = (_any_of([mark]) for mark in (f"<{reading.tag}>", f"</{reading.tag}>"))
    to_end, from_start = rf"(?s){closing}.*$", rf"(?s)^.*{opening}"
    steps = [to_end, from_start] if reading.which == "first" else [from_start, to_end]
    text = pl.col("text")
    for step in steps:
        text = text.str.replace(step, "")
    texts = _select(texts, text)
    return _inside_all(texts, *INNER_ANSWER) if reading.tag == ANSWER_TAG else texts


def _inside_all(texts: pl.Series, opening: str, closing: str) -> pl.Series:
    """From the first opening mark to the last closing one; a missing one stands at that end."""
    opens, closes, either = (_any_of(marks) for marks in ([opening], [closing], [opening, closing]))
    text = pl.col("text")
    begins = text.str.extract(f"({either})").str.contains(opens)
    ends = text.str.extract(f"(?s)^.*({either})").str.contains(closes)
    inside = pl.when(begins).then(text.str.replace(rf"(?s)^.*?{opens}", "")).otherwise(text)
    to_last = inside.str.replace(rf"(?s)^(.*){closes}.*$", "${1}")
    inside = pl.when(ends).then(to_last).otherwise(inside)
    return _select(texts, inside.str.replace_all(either, " "))


def as_series(texts: Texts) -> pl.Series:
    """Texts as a column of strings.

    Half of a surrogate pair, which a Python str can hold and UTF-8 cannot, becomes "?".
    """
    if isinstance(texts, pl.Series):
        return texts.cast(pl.String).alias("text")
    if isinstance(texts, pa.Array | pa.ChunkedArray):
        return cast(pl.Series, pl.from_arrow(texts)).cast(pl.String).alias("text")
    try:
        return pl.Series("text", texts, dtype=pl.String)
    except UnicodeEncodeError:  # surrogates become "?", which is in no pattern either
        encoded = [None if t is None else t.encode("utf-8", "replace").decode() for t in texts]
        return pl.Series("text", encoded, dtype=pl.String)


def _marks(reading: Reading) -> list[str]:
    """All marks that these settings take off."""
    pairs = [*(THOUGHTS if reading.thinking != "none" else ()), *_answer_marks(reading)]
    return [mark for pair in pairs for mark in pair]


def _answer_marks(reading: Reading) -> list[tuple[str, str]]:
    if reading.tag is None:
        return []
    inner = [INNER_ANSWER] if reading.tag == ANSWER_TAG else []
    return [(f"<{reading.tag}>", f"</{reading.tag}>"), *inner]


def _any_of(marks: Sequence[str]) -> str:
    return f"(?i:{'|'.join(map(re.escape, marks))})"


def _select(texts: pl.Series, expression: pl.Expr) -> pl.Series:
    return texts.alias("text").to_frame().select(expression.alias("text"))["text"]
