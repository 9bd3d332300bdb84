"""Tables as VLMEvalKit writes them: csv, tsv, json and xlsx, read as texts and numbers only."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perpo_pipeline.errors import InputError, MissingDependencyError
from perpo_pipeline.evaluate.harness.logs import number_of
from perpo_pipeline.json_files import Row, read_json, read_text

FORMATS = ("csv", "tsv", "json", "xlsx")
AS_WRITTEN = "give the file as the harness wrote it, whole"


def read_table(path: Path) -> list[Row]:
    """The rows of a table, in its order; an empty cell is None.

    Raises InputError, with file and line, for a damaged table, MissingDependencyError for an xlsx
    file without python-calamine.
    """
    if path.suffix == ".json":
        return _from_json(path)
    if path.suffix == ".xlsx":
        return list(_with_head(path, _xlsx_rows(path)))
    return list(_with_head(path, _csv_rows(path, "\t" if path.suffix == ".tsv" else ",")))


def number_in(cell: Any) -> float | None:
    """A cell's finite number: a number, a truth value, or a text of one; None for others."""
    if isinstance(cell, str):
        if cell.strip().lower() in ("true", "false"):
            return float(cell.strip().lower() == "true")
        try:
            return number_of(float(cell))
        except ValueError:
            return None
    return number_of(cell)


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[str, list[Any]]]:
    """(place, cells); cells may be long, so the csv module's limit is raised for them."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(read_text(path)), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            yield f"line {reader.line_num}", [cell if cell != "" else None for cell in cells]
    except csv.Error as error:
        raise InputError(
            f"line {reader.line_num}: {error}", where=str(path), fix=AS_WRITTEN
        ) from error


def _xlsx_rows(path: Path) -> Iterator[tuple[str, list[Any]]]:
    try:
        from python_calamine import CalamineError, CalamineWorkbook
    except ModuleNotFoundError:
        raise MissingDependencyError(
            "python-calamine, which reads xlsx files, is not installed",
            where=str(path),
            fix="pip install 'perpo-pipeline[xlsx]', or let VLMEvalKit write tsv: PRED_FORMAT=tsv",
        ) from None
    try:
        rows = CalamineWorkbook.from_path(str(path)).get_sheet_by_index(0).to_python()
    except (CalamineError, OSError) as error:
        raise InputError(
            f"cannot be read as xlsx: {error}", where=str(path), fix=AS_WRITTEN
        ) from error
    for number, cells in enumerate(rows, start=1):
        yield f"row {number}", [cell if cell != "" else None for cell in cells]


def _with_head(path: Path, rows: Iterator[tuple[str, list[Any]]]) -> Iterator[Row]:
    _, head = next(rows, ("line 1", []))
    names = [str(name) for name in head]
    for place, cells in rows:
        if len(cells) != len(names):
            raise InputError(
                f"{place}: {len(cells)} cells under {len(names)} columns",
                where=str(path),
                fix=AS_WRITTEN,
            )
        yield dict(zip(names, cells, strict=True))


def _split_rows(path: Path, names: list[Any], data: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    """(place, cells) of a head and rows in JSON."""
    yield "columns", names
    for number, cells in enumerate(data, start=1):
        if not isinstance(cells, list):
            raise InputError(
                f"row {number}: {json.dumps(cells)[:60]} is no list of cells",
                where=str(path),
                fix=AS_WRITTEN,
            )
        yield f"row {number}", cells


def _from_json(path: Path) -> list[Row]:
    """A list of rows, one row, or columns: `{"columns": ..., "data": ...}` or lists by name."""
    found = read_json(path)
    if isinstance(found, list) and all(isinstance(row, dict) for row in found):
        return found
    if isinstance(found, dict):
        names, data = found.get("columns"), found.get("data")
        if isinstance(names, list) and isinstance(data, list):
            return list(_with_head(path, _split_rows(path, names, data)))
        lengths = {len(v) if isinstance(v, list) else None for v in found.values()}
        if len(lengths) == 1 and None not in lengths:
            columns = [found[name] for name in found]
            return [dict(zip(found, cells, strict=True)) for cells in zip(*columns, strict=True)]
        return [found]
    raise InputError(
        f"neither rows nor columns: {json.dumps(found)[:60]}", where=str(path), fix=AS_WRITTEN
    )
