"""Fields of a dataset's row: texts and whole numbers, checked, and other columns as text."""

import json
import math
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

from perpo_pipeline.json_files import RowFault
from perpo_pipeline.vlm.image_place import IMAGE_PLACE, has_several_places


def absent(raw: Mapping[str, Any], key: str) -> str:
    """The fault of a key without a value: it is null, or it is missing."""
    return f"`{key}` is {'null' if key in raw and raw[key] is None else 'missing'}"


def text_at(raw: Mapping[str, Any], key: str) -> str:
    """The text under `key`; raises `RowFault` if it is missing or blank, or fits into no table."""
    value = raw.get(key)
    if not isinstance(value, str) or not value:
        raise RowFault(
            absent(raw, key) if value in (None, "") else f"`{key}` is not text: {value!r}"
        )
    if fault := text_fault(key, value) or blank_fault(key, value):
        raise RowFault(fault)
    return value


def integer_at(raw: Mapping[str, Any], key: str) -> int:
    """The whole number under `key`; raises `RowFault` for anything else."""
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise RowFault(
            absent(raw, key) if value is None else f"`{key}` is not a whole number: {value!r}"
        )
    return value


def text_fault(key: str, text: str) -> str | None:
    """The fault of a text with a lone surrogate or a NUL, which no file name or table can hold."""
    if "\x00" in text or any("\ud800" <= c <= "\udfff" for c in text):
        return f"`{key}` holds a character that is not text: {text[:60]!r}"
    return None


def blank_fault(key: str, text: str) -> str | None:
    """The fault of a text of white space alone, which would ask for nothing."""
    return None if not text or text.strip() else f"`{key}` is white space alone: {text[:60]!r}"


def without_first_place(question: str) -> str:
    """A question without a leading `<image>`: the first place is the image's by default.

    An `<image>` further on stays, because it is the place of the image.
    """
    question = question.strip()
    if has_several_places(question):
        return question  # `collect` reports it
    return question.removeprefix(IMAGE_PLACE).strip()


def extra_text(columns: Mapping[str, Any]) -> str | None:
    """Other columns of a row as a JSON object, in their order; None if there are none.

    Dates, times, durations and decimals become texts; numbers that JSON cannot hold (NaN) become
    null. Raises `RowFault` for a value that no table can hold, and for bytes: see `is_kept`.
    """
    if not columns:
        return None
    try:
        text = json.dumps(_plain(columns), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowFault(f"its other columns cannot be kept: {error}") from None
    if fault := text_fault("other columns", text):
        raise RowFault(fault)
    return text


def is_kept(value: Any) -> bool:
    """Whether `extra_text` can hold a value: everything but bytes, at any depth."""
    if isinstance(value, Mapping):
        return all(map(is_kept, value.values()))
    return all(map(is_kept, value)) if isinstance(value, list | tuple) else not _is_bytes(value)


class OtherColumns:
    """The columns that no field reads, over the rows of a file: the names of those that are kept
    with the prompts, and of those that cannot be, in their order."""

    def __init__(self) -> None:
        self.kept: dict[str, None] = {}
        self.left_out: dict[str, None] = {}

    def keep(self, row: dict[str, Any]) -> None:
        """Take from the other columns of a row what cannot be kept; raises `RowFault`."""
        try:
            left_out = [name for name, value in row.items() if not is_kept(value)]
        except RecursionError:
            raise RowFault("its other columns are nested too deeply") from None
        for name in left_out:
            del row[name]
            self.left_out[name] = None
        self.kept.update(dict.fromkeys(row))

    def notes(self) -> dict[str, str]:
        """What a manifest says of them."""
        found = {}
        if self.kept:
            found["extra"] = f"other columns, kept with the prompts: {', '.join(self.kept)}"
        if self.left_out:
            named = ", ".join(self.left_out)
            found["columns_left_out"] = f"columns of bytes, which are left out: {named}"
        return found


def _is_bytes(value: Any) -> bool:
    return isinstance(value, bytes | bytearray | memoryview)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
