"""What several commands print on stdout: paths of artifacts, tables of rows, rows as JSON."""

import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perpo_pipeline.store.artifacts import Version

Rows = Sequence[Mapping[str, Any]]


def print_paths(versions: "Sequence[Version]") -> None:
    """Print where the artifacts are, one path per line."""
    for version in versions:
        print(version.path)


def print_rows(rows: Rows, table: Callable[[Any], str], as_json: bool) -> None:
    """Print rows as a table, or one JSON object per line."""
    print("\n".join(map(_json_line, rows)) if as_json else table(rows))


def cut(line: str) -> str:
    """The line at the width of the terminal, and how many characters were cut off.

    Whole where stdout is no terminal.
    """
    if not sys.stdout.isatty():
        return line
    return cut_at(line, shutil.get_terminal_size().columns)


def cut_at(line: str, width: int) -> str:
    """The line in at most `width` characters, with how many of them are not shown at its end."""
    if len(line) <= width:
        return line
    mark = f"… (+{len(line) - width + len(f'… (+{len(line)})')})"
    return line[: max(width - len(mark), 0)] + mark


def _json_line(row: Mapping[str, Any]) -> str:
    """An unknown value becomes null: JSON has no NaN."""
    known = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
    return json.dumps(known, allow_nan=False)
