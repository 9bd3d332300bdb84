"""Reads dataset files of JSON: each record with its place, faults collected."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.json_files import json_lines, parse_json, read_text
from perpo_pipeline.prepare.rows import Faults

Record = dict[str, Any]


def read_json_lines(path: Path, faults: Faults) -> Iterator[tuple[int, Record]]:
    """Each JSON object with its line number (from 1); empty lines are skipped."""
    return json_lines(_read_text(path, "JSON lines"), faults.add)


def read_json_list(path: Path, faults: Faults) -> Iterator[tuple[int, Record]]:
    """Each object of a JSON list with its number (from 1); raises `InputError` for no list."""
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


def read_json(path: Path) -> Any:
    """A file's one JSON value; raises `ConfigError` if it is absent, `InputError` if it is none."""
    try:
        return parse_json(_read_text(path, "JSON"))
    except ValueError as error:
        raise InputError(
            f"not JSON: {error}", where=str(path), fix="give the file as it was released, whole"
        ) from error


def missing_file(path: Path) -> ConfigError:
    """The error for a dataset file that is not there."""
    return ConfigError(
        "no such dataset file",
        where=str(path),
        fix="correct the path, or fetch the data (README, 'Data')",
    )


def _read_text(path: Path, kind: str) -> str:
    try:
        return read_text(path)
    except FileNotFoundError:
        raise missing_file(path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot be read: {error}", where=str(path), fix=f"give UTF-8 {kind}"
        ) from error
