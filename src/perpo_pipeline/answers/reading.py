"""Reads many answers at once: boxes, points, polygons and numbers.

`boxes.parse_box` and `boxes.parse_boxes` define what a box is, one text at a time; `read_boxes` and
`read_box_lists` return the same for millions of texts, with Polars' regular expressions. Frame and
unit apply to points and polygons as they do to boxes: what reaches out of the frame is read as it
stands; nothing is clamped, swapped or rescaled.

The texts are those of answers: pipeline.py takes off thoughts and tags. They are a Polars series, a
pyarrow array or a sequence of str; a null is an answer without text. `which` takes the first or the
last of several boxes, points, polygons or numbers. Half of a surrogate pair, which a Python str can
hold and UTF-8 cannot, counts as a character without meaning. No text raises an error.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from perpo_pipeline.answers.box_format import POINT_GROUPS, numbers_of
from perpo_pipeline.answers.boxes import find_box
from perpo_pipeline.answers.builtin_formats import (
    DECIMAL,
    JSON_CLOSING,
    JSON_COMMA,
    JSON_FORMATS,
    JSON_OPENING,
    json_number,
)
from perpo_pipeline.answers.formats import BOX_FORMATS, BoxFormat, get_box_format
from perpo_pipeline.answers.pipeline import Texts, as_series
from perpo_pipeline.answers.placement import Floats, place_frames
from perpo_pipeline.answers.settings import Which
from perpo_pipeline.errors import ConfigError

_TEXT = pl.col("text")


def _number(name: str | None = None) -> str:
    group = f"?P<{name}>" if name else "?:"
    return rf"\s*({group}{DECIMAL})\s*"


_POINT = r"\[{},{}\]|\({},{}\)".format(*map(_number, ("x1", "y1", "x2", "y2")))
_JSON_POINT = (
    JSON_OPENING + JSON_COMMA.join(json_number(name) for name in POINT_GROUPS) + JSON_CLOSING
)
_FLAT = rf"\[{_number()}(?:,{_number()}){{5,}}\]"
_NESTED = "|".join(
    rf"{point}(?:\s*(?:,\s*)?{point}){{2,}}"
    for point in (rf"\[{_number()},{_number()}\]", rf"\({_number()},{_number()}\)")
)
_POLYGON = f"{_FLAT}|{_NESTED}"

SMALL_NUMBERS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
)
_OTHER_NUMBERS = (
    "thirty",
    "forty",
    "fifty",
    "sixty",
    "seventy",
    "eighty",
    "ninety",
    "dozen",
    "hundred",
    "thousand",
    "million",
    "billion",
    "point",
)
_WORD = "(?:" + "|".join(SMALL_NUMBERS + _OTHER_NUMBERS) + ")"
# A run of number words, so that the "twenty" of "twenty-one" is not taken for all of it.
_WORDS = rf"(?i)(?:^|[^\w-])({_WORD}(?:[\s-]+{_WORD})*)(?:$|[^\w-])"
# Not inside a word or a version ("H2O", "v1.5"), but after an ellipsis; the sign may come before
# a currency sign. An exponent is matched because the digits before it are not the number.
_DIGITS = (
    r"(?i)(?:^|[^\w.]|\.{2,})(?P<sign>[-\u{2212}]?)\p{Sc}?"
    r"(?P<number>[0-9]+(?:,[0-9]+)*(?:\.[0-9]+)?|\.[0-9]+)(?P<exponent>e[-+]?[0-9]+)?"
)
_GROUPED = r"^[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?$"


def read_boxes(
    texts: Texts,
    box_format: str,
    *,
    frame: str,
    sizes: npt.ArrayLike,
    resized: npt.ArrayLike | None = None,
    which: Which = "first",
) -> Floats:
    """The first (or last) box of each of n texts, `(n, 4)`: xyxy in pixels of the original images.

    `sizes` and `resized` are `(n, 2)`, width and height in pixels; `resized` is needed by the
    frame `resized` and used by no other. A text that `parse_box` leaves unparsed has a row of NaN.
    Raises ConfigError as `parse_box` does, and ValueError for arrays of other shapes.
    """
    rule, series = get_box_format(box_format), as_series(texts)
    placement = place_frames(frame, sizes, resized, len(series))
    if box_format in BOX_FORMATS:
        groups = _groups(series, _rust(rule.pattern.pattern), which)
        values = _floats(groups.select(rule.groups))
    else:  # the user's own pattern is written for Python's `re`
        matches = [None if t is None else find_box(rule, t, which) for t in _as_strings(texts)]
        nowhere = (np.nan,) * len(rule.groups)
        each = [nowhere if match is None else rule.numbers(match) for match in matches]
        values = np.array(each, dtype=np.float64).reshape(-1, len(rule.groups))
    return placement.to_image_px(rule.in_units(values), rule.scale)


def read_box_lists(
    texts: Texts,
    box_format: str,
    *,
    frame: str,
    sizes: npt.ArrayLike,
    resized: npt.ArrayLike | None = None,
) -> list[Floats]:
    """Every box of each of n texts, in order: n arrays `(k, 4)`, k = 0 for a text without a box.

    A box that `parse_box` would not read keeps its place as a row of NaN: it is part of the answer,
    so it counts, and overlaps nothing. Arguments and errors as in `read_boxes`; one text at
    a time: `parse_boxes`.
    """
    rule, series = get_box_format(box_format), as_series(texts)
    placement = place_frames(frame, sizes, resized, len(series))
    if box_format in BOX_FORMATS:
        rows, values = _read_all(series, rule)
    else:
        rows, values = _read_all_with_re(_as_strings(texts), rule)
    found = placement.take(rows).to_image_px(rule.in_units(values), rule.scale)
    return _split(found, rows, len(series))


def read_points(
    texts: Texts,
    box_format: str,
    *,
    frame: str,
    sizes: npt.ArrayLike,
    resized: npt.ArrayLike | None = None,
    which: Which = "first",
) -> Floats:
    """The first (or last) point of each of n texts, `(n, 2)`: x, y in pixels of the originals.

    A point is two plain decimals, `[x, y]` (as in Qwen's JSON, `"point_2d": [x, y]`) or `(x, y)`,
    in the unit of the box format; in a format that is `y_first`, y stands before x. Qwen's formats
    also read numbers in quotes and a comma after the last one, and a format with a `point_pattern`
    reads that alone. The row is NaN if the text has no point. Arguments and errors as in
    `read_boxes`.
    """
    rule, series = get_box_format(box_format), as_series(texts)
    placement = place_frames(frame, sizes, resized, len(series))
    if rule.point_pattern is not None and box_format not in BOX_FORMATS:
        values = _own_points(_as_strings(texts), rule.point_pattern, which)
    elif rule.point_pattern is not None or box_format in JSON_FORMATS:
        pattern = _JSON_POINT if rule.point_pattern is None else rule.point_pattern.pattern
        values = _floats(_groups(series, _rust(pattern), which).select(POINT_GROUPS))
    else:
        groups = _groups(series, _rust(_POINT), which)
        values = _floats(groups.select(pl.coalesce(f"{axis}1", f"{axis}2") for axis in "xy"))
        values = _x_first(values, rule)
    return placement.to_image_px(values + rule.bin_offset, rule.scale)


def read_polygons(
    texts: Texts,
    box_format: str,
    *,
    frame: str,
    sizes: npt.ArrayLike,
    resized: npt.ArrayLike | None = None,
    which: Which = "first",
) -> list[Floats | None]:
    """The first (or last) polygon of each of n texts: `(k, 2)` in pixels of the original, k >= 3.

    It is the first (or last) run of plain decimals for 3 points or more: `[x1, y1, x2, y2, x3,
    y3]`, `[x1, y1], [x2, y2], [x3, y3]` or `(x1,y1),(x2,y2),(x3,y3)` (Qwen-VL's `<quad>`), in the
    unit of the box format; in a format that is `y_first`, every y stands before its x. Four numbers
    are a box, not a polygon. None if the text has no such run, or if this one has an odd count.
    Arguments and errors as in `read_boxes`; also raises ConfigError for a format of cells, which
    has no unit for a point.
    """
    rule, series = get_box_format(box_format), as_series(texts)
    if rule.cells:
        raise ConfigError(
            f"the box format {box_format!r} writes the cells of a grid and has no polygons",
            fix="use another model.box_format, or give these prompts true boxes",
        )
    placement = place_frames(frame, sizes, resized, len(series))
    numbers = _explode(series, _one_match(_rust(_POLYGON), which).str.extract_all(DECIMAL))
    rows = numbers["row"].to_numpy()
    is_even = np.bincount(rows, minlength=len(series))[rows] % 2 == 0
    rows, values = rows[is_even][::2], _floats(numbers.select("text"))[is_even].reshape(-1, 2)
    values = _x_first(values, rule) + rule.bin_offset
    found = placement.take(rows).to_image_px(values, rule.scale)
    polygons = _split(found, rows, len(series))
    return [None if not len(p) or np.isnan(p).any() else p for p in polygons]


def read_numbers(texts: Texts, which: Which = "first") -> Floats:
    """The first (or last) number of each of n texts, `(n,)`; NaN for a text without one.

    A number is a plain decimal such as 3, -0.5, .5, 1,234.5 or $20: commas belong to it in groups
    of three digits only (1,5 reads as 1), what follows (%, km) is ignored, and digits after a
    letter (H2O) are not a number. With an exponent, or too large for a float, it is NaN. A text
    without digits is searched for the first (or last) English number word from zero to twenty, in
    any case; longer ones (twenty-one, two hundred) are NaN, and "no" and "a" are not read.
    """
    series = as_series(texts)
    if which == "first":
        groups = _groups(series, _DIGITS, which)
    else:  # the last match is read again by itself: a hyphen before it must not become its sign
        groups = _groups(" " + series, _DIGITS.replace("^|", ""), which)
    number, is_signed = pl.col("number"), pl.col("sign").str.len_bytes() > 0
    plain = (
        pl.when(number.str.contains(_GROUPED))
        .then(number.str.replace_all(",", "", literal=True))
        .otherwise(number.str.extract(r"^([0-9]*(?:\.[0-9]+)?)"))
        .cast(pl.Float64, strict=False)
    )
    signed = pl.when(is_signed).then(-plain).otherwise(plain)
    digits = pl.when(pl.col("exponent").is_null()).then(signed).otherwise(np.nan)
    small = {word: float(value) for value, word in enumerate(SMALL_NUMBERS)}
    word = _number_word(which).str.to_lowercase()
    words = _collect(series, word.replace_strict(small, default=None, return_dtype=pl.Float64))
    found = groups.select(digits.alias("found"))["found"].fill_null(words["text"])
    values = found.fill_null(np.nan).to_numpy()
    return np.where(np.isfinite(values), values, np.nan)


def _x_first(values: Floats, rule: BoxFormat) -> Floats:
    """Points as they are written, `(n, 2)`, as x, y."""
    return values[:, ::-1] if rule.y_first else values


def _own_points(texts: Iterable[str | None], pattern: re.Pattern[str], which: Which) -> Floats:
    """The numbers of the first or last point of each text, `(n, 2)`, by a user's own pattern."""
    found = []
    for text in texts:
        matches = [] if text is None else list(pattern.finditer(text))
        match = matches[0 if which == "first" else -1] if matches else None
        found.append(numbers_of(match, POINT_GROUPS))
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def _one_match(pattern: str, which: Which) -> pl.Expr:
    """The text of the first or last match of a pattern in the column `text`, null for none."""
    if which == "first":
        return _TEXT.str.extract(pattern, 0)
    return _TEXT.str.extract_all(pattern).list.last()


def _groups(series: pl.Series, pattern: str, which: Which) -> pl.DataFrame:
    """The named groups of the first or last match of a pattern in each text, null for none."""
    matched = _TEXT if which == "first" else _one_match(pattern, which)
    found = _collect(series, matched.str.extract_groups(pattern).alias("found"))
    return found.unnest("found")


def _number_word(which: Which) -> pl.Expr:
    if which == "first":
        return _TEXT.str.extract(_WORDS)
    # Each match takes the characters around it along, so that neighbours must not share one.
    doubled = _TEXT.str.replace_all(r"[^\w-]", "$0$0")
    return doubled.str.extract_all(_WORDS).list.last().str.extract(_WORDS)


def _as_strings(texts: Texts) -> Iterable[str | None]:
    is_column = isinstance(texts, pl.Series | pa.Array | pa.ChunkedArray)
    return as_series(texts).to_list() if is_column else cast(Sequence[str | None], texts)


def _read_all(series: pl.Series, rule: BoxFormat) -> tuple[npt.NDArray[Any], Floats]:
    """The row of every box and its numbers as they are written, `(k,)` and `(k, 4)` or `(k, 2)`."""
    pattern = _rust(rule.pattern.pattern)
    found = _explode(series, _TEXT.str.extract_all(pattern))
    groups = _collect(found["text"], _TEXT.str.extract_groups(pattern).alias("box"))
    return found["row"].to_numpy(), _floats(groups.unnest("box").select(rule.groups))


def _read_all_with_re(
    texts: Iterable[str | None], rule: BoxFormat
) -> tuple[npt.NDArray[Any], Floats]:
    """As `_read_all`, with a user's own pattern, which is written for Python's `re`."""
    found = [
        (row, rule.numbers(match))
        for row, text in enumerate(texts)
        if text is not None
        for match in rule.pattern.finditer(text)
    ]
    rows = np.array([row for row, _ in found], dtype=np.int64)
    numbers = np.array([box for _, box in found], dtype=np.float64)
    return rows, numbers.reshape(-1, len(rule.groups))


def _rust(pattern: str) -> str:
    r"""The pattern for Polars: Python's `\s` has four control characters that Rust's lacks."""
    return pattern.replace(r"\s", r"[\s\x1c-\x1f]")


def _collect(series: pl.Series, expression: pl.Expr) -> pl.DataFrame:
    """The expression of the column `text`, on all of Polars' threads, in order."""
    return series.alias("text").to_frame().lazy().select(expression).collect(engine="streaming")


def _explode(series: pl.Series, lists: pl.Expr) -> pl.DataFrame:
    """One row per string in the lists: the string, as `text`, and the `row` that it came from."""
    found = _collect(series, lists.alias("text")).with_row_index("row")
    return found.explode("text").drop_nulls("text")


def _floats(strings: pl.DataFrame) -> Floats:
    """The columns of plain decimals as `(n, columns)`, NaN for null, correctly rounded."""
    numbers = strings.cast(pl.Float64, strict=False).fill_null(np.nan)
    return cast(Floats, numbers.to_numpy(order="c"))


def _split(values: Floats, rows: npt.NDArray[Any], num_rows: int) -> list[Floats]:
    """The values of each row from 0 to num_rows; `rows` ascends and may skip some."""
    ends = np.cumsum(np.bincount(rows, minlength=num_rows)).tolist()
    return [values[start:end] for start, end in pairwise([0, *ends])]
