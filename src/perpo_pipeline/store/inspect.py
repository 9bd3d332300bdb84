"""`perpo inspect`: describe an artifact."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store.artifacts import Version, damaged_files, open_version
from perpo_pipeline.store.made_from import was_made_again

LONGEST_CELL = 100


def describe(directory: Path, *, rows: int = 3, verify: bool = False) -> str:
    """Describe one artifact as text: its kind, lineage, settings, counts and first rows.

    Raises `ArtifactError` if it is missing, unfinished, or (with `verify`) damaged.
    """
    version = open_version(directory)
    manifest = version.manifest
    lines = [
        f"{version.artifact} / {version.variant}   version {version.fingerprint}",
        f"  path            {version.path}",
        f"  made by         perpo {manifest['stage']} at {manifest['created_at']} in "
        f"{manifest['wall_s']} s",
        f"  rows            {manifest['rows']} in {len(version.parts())} parts",
        f"  schema version  {manifest['schema_version']}",
        *_block("lineage", list(_lineage(version))),
        *_block("settings", _pairs(manifest["settings"])),
        *_block("notes", _pairs(manifest["notes"])),
        *_block("counts", _pairs(manifest["counts"])),
        *_block("columns", [f"{f.name}: {f.type}" for f in version.table().schema]),
        *_block(f"first {rows} rows", list(_first_rows(version.batches(), rows))),
        *_other_tables(version, rows),
    ]
    if verify:
        damaged = damaged_files(version)
        if damaged:
            raise ArtifactError(
                f"damaged files: {', '.join(damaged)}",
                where=str(version.path),
                fix=f"remove this directory and run: {version.remake()}",
            )
        lines.append("  every file has the sha256 that the manifest records")
    return "\n".join(lines)


def _block(title: str, lines: list[str]) -> list[str]:
    return [f"  {title}", *(f"    {line}" for line in lines)] if lines else []


def _pairs(values: dict[str, Any]) -> list[str]:
    return [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]


def _lineage(version: Version, depth: int = 0) -> Iterator[str]:
    for record in version.manifest["inputs"].values():
        place = version.path / record["path"]
        parent = open_version(place) if place.is_dir() else None
        again = " (made again since)" if parent and was_made_again(record, parent) else ""
        named = f"{record['artifact']}/{record['variant']} {record['fingerprint']}"
        yield "  " * depth + named + again
        if parent is not None:
            yield from _lineage(parent, depth + 1)
        else:
            yield "  " * (depth + 1) + f"(no longer at {place})"


def _other_tables(version: Version, rows: int) -> Iterator[str]:
    """The first rows of the tables beside the artifact's own: errors, lists that were left out."""
    names = {part["table"] for part in version.manifest["parts"]} - {version.artifact}
    for name in sorted(names):
        table = version.table(name)
        yield from _block(
            f"{name}: first {min(rows, table.num_rows)} of {table.num_rows} rows",
            list(_first_rows([table], rows)),
        )


def _first_rows(parts: Iterable[pa.Table], rows: int) -> Iterator[str]:
    shown = 0
    for part in parts:
        for row in part.slice(0, rows - shown).to_pylist():
            shown += 1
            yield f"row {shown}"
            yield from (f"  {key}: {_cell(value)}" for key, value in row.items())
        if shown >= rows:
            return


def _cell(value: Any) -> str:
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_cell(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list) and any(isinstance(one, dict | bytes) for one in value):
        return "[" + ", ".join(map(_cell, value)) + "]"
    text = repr(value)
    return text if len(text) <= LONGEST_CELL else text[:LONGEST_CELL] + "..."
