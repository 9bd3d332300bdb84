"""Reads the files of a judgement, checks them and joins them by id; reports all faults at once.

Ids are text or whole numbers; 7 and "7" are the same id. Other fields than those needed are
ignored, since the benchmarks' own files hold more.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perpo_pipeline.answers.pipeline import answer_texts
from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.errors import PerpoError
from perpo_pipeline.json_files import Faults, Row, json_lines, parse_json, read_text

Say = Callable[[str], None]
DEFAULT_READING = Reading()


def new_faults() -> Faults:
    """A collector for the faults of all files of one judgement."""
    return Faults(fix="correct the files; nothing was asked and nothing was written")


def read_json_lines(path: Path, faults: Faults) -> list[tuple[str, Row]]:
    """Every JSON object of a file, with its place ("FILE line 3"); blank lines are skipped."""
    known = len(faults.found)
    objects = json_lines(
        _read_text(path, faults) or "", lambda place, what: faults.add(f"{path} {place}", what)
    )
    rows = [(f"{path} line {number}", row) for number, row in objects]
    if not rows and len(faults.found) == known:
        faults.add(str(path), "the file holds no row")
    return rows


def read_json(path: Path, kind: type[list[Any]] | type[Row], faults: Faults) -> Any:
    """The list or the object that a JSON file holds; an empty one if there is a fault."""
    text = _read_text(path, faults)
    found = None if text is None else _parse(text, path, faults)
    if found is None:  # the fault is recorded
        return kind()
    if not isinstance(found, kind):
        faults.add(str(path), f"not a JSON {'list' if kind is list else 'object'}")
        return kind()
    if not found:
        faults.add(str(path), "the file holds no row")
    return found


class RowsById(dict[str, Row]):
    """Rows of a file by their ids; `places` holds where each stands ("FILE line 3")."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, str] = {}


def rows_by_id(path: Path, key: str, needed: Iterable[str], faults: Faults) -> RowsById:
    """Rows of a JSON-lines file by their `key`, each with text under every `needed` name."""
    found = RowsById()
    for place, row in read_json_lines(path, faults):
        identity = id_of(row, key, place, faults)
        check_texts(row, needed, place, faults)
        if identity is None:
            continue
        if identity in found:
            faults.add(place, f"{key} {identity!r} occurs twice")
        found[identity], found.places[identity] = row, place
    return found


def id_of(row: Row, key: str, place: str, faults: Faults) -> str | None:
    """The row's id as text; records a fault and returns None if it has none."""
    value = row.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value and is_text(value):
        return value
    faults.add(place, f"`{key}` is {value!r}; it must be text or a whole number")
    return None


def check_texts(row: Row, names: Iterable[str], place: str, faults: Faults) -> None:
    """Record a fault for each name under which the row has no text; text may be empty."""
    for name in names:
        value = row.get(name)
        if not isinstance(value, str):
            faults.add(place, f"`{name}` is not text: {value!r}"[:200])
        elif not is_text(value):
            faults.add(place, f"`{name}` holds half a character (a lone surrogate)")


def is_text(value: str) -> bool:
    """Whether UTF-8 can encode it."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def check_answered(
    ids: Iterable[str], answers: Iterable[str], path: Path, faults: Faults, say: Say
) -> None:
    """Record a fault for each question without an answer in `path`; print how many are unasked."""
    wanted, there = dict.fromkeys(ids), dict.fromkeys(answers)
    for identity in wanted:
        if identity not in there:
            asked = f" ({ids.places[identity]})" if isinstance(ids, RowsById) else ""
            faults.add(str(path), f"no answer to question {identity!r}{asked}")
    unasked = [identity for identity in there if identity not in wanted]
    if unasked:
        say(
            f"judge: {len(unasked)} answers in {path} belong to no question and are not judged, "
            f"for instance {unasked[0]!r}"
        )


@dataclass(frozen=True)
class ModelAnswer:
    """A model's answer as the judge gets it; `is_trimmed`: thoughts or tags were taken off."""

    text: str
    is_trimmed: bool


def find_answers(
    completions: Mapping[str, str], reading: Reading, path: Path, say: Say
) -> dict[str, ModelAnswer]:
    """The answers in a model's completions, by id; prints how many have none.

    A completion that ends within a thought has no answer: the judge gets an empty one.
    """
    texts = answer_texts(list(completions.values()), reading)
    pairs = zip(completions.items(), texts, strict=True)
    found = {key: ModelAnswer(text or "", text != given) for (key, given), text in pairs}
    if missing := texts.null_count():
        say(
            f"judge: {missing} of {len(texts)} completions in {path} end within a thought; they "
            "are judged as empty answers"
        )
    return found


def _read_text(path: Path, faults: Faults) -> str | None:
    try:
        return read_text(path)
    except PerpoError as error:
        faults.add(str(path), error.what)
        return None


def _parse(text: str, path: Path, faults: Faults) -> Any:
    """The JSON value; records a fault and returns None for null and for what is not JSON."""
    try:
        found = parse_json(text)
    except ValueError as error:
        faults.add(str(path), f"not JSON: {error}")
        return None
    if found is None:
        faults.add(str(path), "holds null")
    return found
