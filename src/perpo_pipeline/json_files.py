"""JSON that people give us: objects a line or one value a file, each key once, faults collected."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
# Is told the place and what is wrong there.
TellFault = Callable[[str, str], object]

FAULTS_SHOWN = 20


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


def list_faults(faults: Sequence[str]) -> str:
    """The first faults, a line each, and the number of the others."""
    shown = list(faults[:FAULTS_SHOWN])
    if len(faults) > len(shown):
        shown.append(f"... and {len(faults) - len(shown)} more")
    return "\n".join(f"  - {fault}" for fault in shown)


def _unique_keys(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is given twice")
    return row
