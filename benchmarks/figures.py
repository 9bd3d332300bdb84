"""Figures on disk as they are measured: a benchmark that is stopped keeps what it has."""

import json
from pathlib import Path
from typing import Any

OUT_OF_MEMORY = "out of memory"


def save(path: Path | None, result: Any) -> None:
    """Replace the file by the result so far; without a path nothing is written."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
