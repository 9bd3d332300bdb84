"""JSON files that users give: one reader and one collector of faults for all of them.

A file holds one JSON object per line, or one JSON value. Lines are read one by one, a value whole.
Each key may occur once per object. Faults are collected with their places, so that one error
reports all of them.
"""

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from perpo_pipeline import advice
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.suggestions import closest_path

Row = dict[str, Any]
# Called with the place and with what is wrong there.
AddFault = Callable[[str, str], object]

FAULTS_SHOWN = 20
LONGEST_FAULT = 1000  # characters
UNPACKED_BY = {
    ".gz": "gunzip -k {file}",
    ".bz2": "bunzip2 -k {file}",
    ".xz": "unxz -k {file}",
    ".zst": "unzstd {file}",
    ".zip": "unzip -d {folder} {file}",
}
"""The endings of compressed files, and the command that unpacks one beside it."""
FOLDED_FROM = 6  # places: from here on, the same fault is listed once for all of them


class RowFault(Exception):
    """What is wrong with one row of a file; `Faults.at` keeps it together with its place."""


class Fault(NamedTuple):
    """One fault of a file: its place, what is wrong there, and the reason it is counted under."""

    place: str
    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


class Faults:
    """Collects the faults of one file (`where`) or of several, to report them in one error."""

    def __init__(
        self,
        where: Path | None = None,
        *,
        fix: str = "correct or remove these rows; nothing was written",
    ) -> None:
        self.where = None if where is None else str(where)
        self.fix, self.found = fix, list[Fault]()

    def add(self, place: str, what: str, reason: str = "bad_row") -> None:
        """Record that something is wrong at `place`; what is not text (UTF-8) is escaped."""
        self.found.append(Fault(_as_text(place), _as_text(_cut(what)), reason))

    @contextmanager
    def at(self, place: str, reason: str = "bad_row") -> Iterator[None]:
        """Record a `RowFault` raised inside as a fault at `place`, and continue after the block."""
        try:
            yield
        except RowFault as fault:
            self.add(place, str(fault), reason)

    def check(self) -> None:
        """Raise `InputError` with the first 20 faults if any were found."""
        if not self.found:
            return
        count = "1 fault" if len(self.found) == 1 else f"{len(self.found)} faults"
        raise InputError(
            f"{count}:\n{list_faults(list(map(str, self.found)))}",
            where=self.where,
            fix=self.fix,
        )


def read_text(path: Path) -> str:
    """The file's UTF-8 text, without a byte order mark.

    Raises `ConfigError` if the file is missing, `InputError` if it cannot be read or is compressed.
    """
    refuse_compressed(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise missing_file(path) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"cannot be read: line {line} is not UTF-8 ({error})",
            where=str(path),
            fix="save the file as UTF-8",
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"cannot be read: {reason}", where=str(path), fix="give a file that can be read"
        ) from error


def refuse_compressed(path: Path) -> None:
    """Raise `InputError` for a file whose name says that it is compressed."""
    unpack = UNPACKED_BY.get(path.suffix.lower())
    if unpack is not None and path.is_file():
        file, folder = (shlex.quote(str(place)) for place in (path, path.parent))
        raise InputError(
            f"cannot be read: the file is compressed ({path.suffix})",
            where=str(path),
            fix="unpack it, and give the unpacked file: " + unpack.format(file=file, folder=folder),
        )


def missing_file(path: Path) -> ConfigError:
    """The error for a file that does not exist."""
    near = closest_path(path)
    return ConfigError(
        "no such file",
        where=str(path),
        fix=f"did you mean {near}?"
        if near
        else "correct the path, or fetch the file first "
        f"(public datasets: see {advice.page('data')})",
    )


def parse_json(text: str, without: frozenset[str] = frozenset()) -> Any:
    """The value of a JSON text; raises ValueError if it is not JSON or repeats a key.

    Values under the keys `without` are dropped as they are read, so that they take no memory.
    """

    def hook(pairs: list[tuple[str, Any]]) -> Row:
        return _unique_keys([pair for pair in pairs if pair[0] not in without])

    try:
        return json.loads(text, object_pairs_hook=hook if without else _unique_keys)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path, without: frozenset[str] = frozenset()) -> Any:
    """The one JSON value of a file; raises as `read_text`, and `InputError` if it is not JSON.

    `without`: see `parse_json`.
    """
    try:
        return parse_json(read_text(path), without)
    except ValueError as error:
        raise InputError(
            f"not JSON: {error}", where=str(path), fix="give the file as it was released, whole"
        ) from error


def read_json_lines(path: Path, faults: Faults) -> Iterator[tuple[int, Row]]:
    """(line number from 1, object) of each line that is not blank; raises as `read_text`.

    Memory holds one line, unless the file is a list or starts like one.
    """
    is_list, lines = _peeked(path)
    return json_lines("\n".join(lines), faults.add) if is_list else _objects(lines, faults.add)


def read_json_list(path: Path, faults: Faults) -> Iterator[tuple[int, Row]]:
    """(number from 1, object) of each entry of a JSON list; raises as `read_json`.

    Raises `InputError` if the file holds another value than a list.
    """
    records = read_json(path)
    if not isinstance(records, list):
        raise InputError(
            "not a JSON list of records", where=str(path), fix="give the file as it was released"
        )
    for number, record in enumerate(records, start=1):
        if isinstance(record, dict):
            yield number, record
        else:
            faults.add(f"record {number}", "not a JSON object")


def read_json_rows(path: Path, faults: Faults) -> Iterator[tuple[str, Row]]:
    """(place, object) of JSON lines ("line 3") or of a JSON list ("record 3").

    Raises as `read_text`, and `InputError` for a list that is not JSON. Memory holds one line, or a
    whole list.
    """
    is_list, lines = _peeked(path)
    if is_list:
        text = "\n".join(lines)
        records, found = _list_of(text, path), json_lines(text, faults.add)
    else:
        records, found = None, _objects(lines, faults.add)
    if records is None:
        yield from ((f"line {number}", row) for number, row in found)
        return
    for number, record in enumerate(records, start=1):
        if isinstance(record, dict):
            yield f"record {number}", record
        else:
            faults.add(f"record {number}", "not a JSON object")


def json_lines(text: str, add_fault: AddFault) -> Iterator[tuple[int, Row]]:
    """(line number from 1, object) of each line that is not blank; other lines are faults."""
    if _is_list(text):
        add_fault("line 1", "the file is a JSON list; give one JSON object per line")
        return
    yield from _objects(text.split("\n"), add_fault)


def _objects(lines: Iterable[str], add_fault: AddFault) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found = parse_json(line)
        except ValueError as error:
            add_fault(f"line {number}", f"not JSON: {error}")
            continue
        if isinstance(found, dict):
            yield number, found
        else:
            add_fault(f"line {number}", "not a JSON object")


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file, read one by one; raises as `read_text`."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                yield line.removesuffix("\n")
    except (OSError, UnicodeDecodeError):
        read_text(path)  # says what is wrong, and in which line
        raise


def _peeked(path: Path) -> tuple[bool, Iterator[str]]:
    """Whether a file begins as a JSON list, and its lines; a pipe can be read once only."""
    refuse_compressed(path)
    lines, first = _lines(path), []
    for line in lines:
        first.append(line)
        if line.strip():
            break
    is_list = bool(first) and first[-1].lstrip().startswith("[")
    return is_list, chain(first, lines)


def list_faults(faults: Sequence[str]) -> str:
    """The first faults ("PLACE: WHAT"), one per line, and the number of the others.

    A fault that occurs at many places is listed once, with the first of these places.
    """
    places: dict[str, list[str]] = {}
    for fault in faults:
        place, _, what = fault.partition(": ")
        places.setdefault(what or fault, []).append(place)
    shown: list[str] = []
    left = len(faults)
    for what, found in places.items():
        if len(found) >= FOLDED_FROM:
            lines = [f"{', '.join(found[:3])}, ... ({len(found)} in all): {what}"]
        else:
            lines = [f"{place}: {what}" if place != what else what for place in found]
        for line in lines[: FAULTS_SHOWN - len(shown)]:
            shown.append(line)
            left -= len(found) // len(lines)
    if left:
        shown.append(f"... and {left} more")
    return "\n".join(f"  - {line}" for line in shown)


def _as_text(found: str) -> str:
    return found.encode(errors="backslashreplace").decode()


def _cut(what: str) -> str:
    """A fault without most of a long value: a whole image may stand where a path should."""
    if len(what) <= LONGEST_FAULT:
        return what
    start, end = LONGEST_FAULT - 200, 200
    return f"{what[:start]} ... ({len(what) - start - end:,} characters) ... {what[-end:]}"


def _list_of(text: str, path: Path) -> list[Any] | None:
    """The JSON list that a text is; None for JSON lines.

    Raises `InputError` for a list that is not whole: its first line is no JSON of its own.
    """
    if not text.lstrip().startswith("["):
        return None
    try:
        found = parse_json(text)
    except ValueError as error:
        if _is_json(text.lstrip().partition("\n")[0]):
            return None
        raise InputError(
            f"not JSON: {error}", where=str(path), fix="give the whole file, as it was saved"
        ) from error
    return list(found)


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def _is_list(text: str) -> bool:
    """Whether the whole text is one JSON list."""
    if not text.lstrip().startswith("["):
        return False
    try:
        return isinstance(parse_json(text), list) and "{" in text
    except ValueError:
        return False


def _unique_keys(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} is given twice")
    return row
