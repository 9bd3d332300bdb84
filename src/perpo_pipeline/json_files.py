"""JSON that people give us: objects a line or one value a file, each key once, faults collected."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
# Is told the place and what is wrong there.
TellFault = Callable[[str, str], object]

FAULTS_SHOWN = 20
FOLDED = 6  # places from which on a fault is told once for all


def read_text(path: Path) -> str:
    """The file's UTF-8 text, without a byte order mark; raises OSError, UnicodeDecodeError."""
    return path.read_text(encoding="utf-8-sig")


def parse_json(text: str) -> Any:
    """The value of a JSON text; raises ValueError for what is none and for a key given twice."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def json_lines(text: str, tell: TellFault) -> Iterator[tuple[int, Row]]:
    """(line number from 1, object) of each line that is not blank; `tell` gets the others."""
    if _is_list(text):
        tell("line 1", "the file is a JSON list; give one JSON object a line")
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found = parse_json(line)
        except ValueError as error:
            tell(f"line {number}", f"not JSON: {error}")
            continue
        if isinstance(found, dict):
            yield number, found
        else:
            tell(f"line {number}", "not a JSON object")


def _is_list(text: str) -> bool:
    """Whether the whole text is one JSON list."""
    if not text.lstrip().startswith("["):
        return False
    try:
        return isinstance(parse_json(text), list) and "{" in text
    except ValueError:
        return False


def list_faults(faults: Sequence[str]) -> str:
    """The first faults ("PLACE: WHAT"), a line each, and the number of the others.

    What is wrong at many places is told once, with the first of them.
    """
    places: dict[str, list[str]] = {}
    for fault in faults:
        place, _, what = fault.partition(": ")
        places.setdefault(what or fault, []).append(place)
    shown: list[str] = []
    left = len(faults)
    for what, found in places.items():
        if len(found) >= FOLDED:
            lines = [f"{', '.join(found[:3])}, ... ({len(found)} in all): {what}"]
        else:
            lines = [f"{place}: {what}" if place != what else what for place in found]
        for line in lines[: FAULTS_SHOWN - len(shown)]:
            shown.append(line)
            left -= len(found) // len(lines)
    if left:
        shown.append(f"... and {left} more")
    return "\n".join(f"  - {line}" for line in shown)


def _unique_keys(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is given twice")
    return row
