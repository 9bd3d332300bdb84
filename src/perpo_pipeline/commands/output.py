"""What several commands print on stdout: paths of artifacts, tables of rows, rows as JSON."""

import json
import math
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


def _json_line(row: Mapping[str, Any]) -> str:
    """An unknown value becomes null: JSON has no NaN."""
    known = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
    return json.dumps(known, allow_nan=False)
