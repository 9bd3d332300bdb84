"""The files of a judgement: read, checked and joined by id, with all faults told at once.

Ids are text or whole numbers; 7 and "7" are the same id. Keys that are not asked for are left
alone, since the benchmarks' own files hold more.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from perpo_pipeline.errors import InputError, PerpoError
from perpo_pipeline.json_files import json_lines, list_faults, parse_json, read_text

Row = dict[str, Any]
Faults = list[str]
Say = Callable[[str], None]


def read_json_lines(path: Path, faults: Faults) -> list[tuple[str, Row]]:
    """Every JSON object of a file, with its place ("FILE line 3"); blank lines are passed over."""
    known = len(faults)
    objects = json_lines(
        _read_text(path, faults) or "", lambda place, what: faults.append(f"{path} {place}: {what}")
    )
    rows = [(f"{path} line {number}", row) for number, row in objects]
    if not rows and len(faults) == known:
        faults.append(f"{path}: the file holds no row")
    return rows


def read_json(path: Path, kind: type[list[Any]] | type[Row], faults: Faults) -> Any:
    """The list or the object that a JSON file holds; an empty one where there is a fault."""
    text = _read_text(path, faults)
    found = None if text is None else _parse(text, str(path), faults)
    if found is None:  # told already
        return kind()
    if not isinstance(found, kind):
        faults.append(f"{path}: not a JSON {'list' if kind is list else 'object'}")
        return kind()
    if not found:
        faults.append(f"{path}: the file holds no row")
    return found


def rows_by_id(path: Path, key: str, needed: Iterable[str], faults: Faults) -> dict[str, Row]:
    """Rows of a JSON-lines file by their `key`, each with text under every `needed` name."""
    found: dict[str, Row] = {}
    for place, row in read_json_lines(path, faults):
        identity = id_of(row, key, place, faults)
        check_texts(row, needed, place, faults)
        if identity is None:
            continue
        if identity in found:
            faults.append(f"{place}: {key} {identity!r} occurs twice")
        found[identity] = row
    return found


def id_of(row: Row, key: str, place: str, faults: Faults) -> str | None:
    """The row's id as text."""
    value = row.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value and is_text(value):
        return value
    faults.append(f"{place}: `{key}` is {value!r}; it must be text or a whole number")
    return None


def check_texts(row: Row, names: Iterable[str], place: str, faults: Faults) -> None:
    """A fault for each name under which the row has no text; an answer may be empty text."""
    for name in names:
        value = row.get(name)
        if not isinstance(value, str):
            faults.append(f"{place}: `{name}` is not text: {value!r}"[:200])
        elif not is_text(value):
            faults.append(f"{place}: `{name}` holds a lone surrogate, which is no text")


def is_text(value: str) -> bool:
    """Whether UTF-8 can hold it."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def check_answered(
    ids: Iterable[str], answers: Iterable[str], path: Path, faults: Faults, say: Say
) -> None:
    """A fault for each question without an answer in `path`; says how many answers have none."""
    wanted, there = dict.fromkeys(ids), dict.fromkeys(answers)
    faults += [
        f"{path}: no answer to question {identity!r}"
        for identity in wanted
        if identity not in there
    ]
    unasked = [identity for identity in there if identity not in wanted]
    if unasked:
        say(
            f"judge: {len(unasked)} answers in {path} belong to no question and are not judged, "
            f"for instance {unasked[0]!r}"
        )


def raise_faults(faults: Faults) -> None:
    """Raise InputError with the first faults and the number of the others."""
    if not faults:
        return
    raise InputError(
        f"{len(faults)} faults in what is to be judged:\n{list_faults(faults)}",
        fix="correct the files; nothing was asked and nothing was written",
    )


def _read_text(path: Path, faults: Faults) -> str | None:
    try:
        return read_text(path)
    except PerpoError as error:
        faults.append(f"{path}: {error.what}")
        return None


def _parse(text: str, place: str, faults: Faults) -> Any:
    """None where there is a fault."""
    try:
        found = parse_json(text)
    except ValueError as error:
        faults.append(f"{place}: not JSON: {error}")
        return None
    if found is None:
        faults.append(f"{place}: holds null")
    return found
