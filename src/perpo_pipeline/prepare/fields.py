"""Fields of a dataset's row: texts and whole numbers, checked."""

from collections.abc import Mapping
from typing import Any

from perpo_pipeline.json_files import RowFault
from perpo_pipeline.vlm.image_place import IMAGE_PLACE, has_several_places


def absent(raw: Mapping[str, Any], key: str) -> str:
    """The fault of a key without a value: it is null, or it is missing."""
    return f"`{key}` is {'null' if key in raw and raw[key] is None else 'missing'}"


def text_at(raw: Mapping[str, Any], key: str) -> str:
    """The text under `key`; raises `RowFault` if it is missing or no table can hold it."""
    value = raw.get(key)
    if not isinstance(value, str) or not value:
        raise RowFault(
            absent(raw, key) if value in (None, "") else f"`{key}` is not text: {value!r}"
        )
    if fault := text_fault(key, value):
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


def without_first_place(question: str) -> str:
    """A question without a leading `<image>`: the first place is the image's by default.

    An `<image>` further on stays, because it is the place of the image.
    """
    question = question.strip()
    if has_several_places(question):
        return question  # `collect` reports it
    return question.removeprefix(IMAGE_PLACE).strip()
