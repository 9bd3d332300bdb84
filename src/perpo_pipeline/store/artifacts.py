"""The only reader and writer of artifacts.

    data/<run>/<artifact>/<variant>/current              names the version in use
    data/<run>/<artifact>/<variant>/<fingerprint>/
        started.json          first: fingerprint and settings
        notes.json            what was learned on the way, where there is anything
        part-00000.parquet    ...each carries the fingerprint in its metadata
        manifest.json         last: complete means that it is there

Every file arrives by write, fsync and rename, so that a process killed at any moment leaves whole
files only; the same command then goes on after the last whole part. A version is never overwritten.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store.atomic import (
    file_sha256,
    os_errors_explained,
    sync_directory,
    write_atomically,
)
from perpo_pipeline.store.provenance import git_commit, package_versions
from perpo_pipeline.store.schemas import ALL, TableSchema

MANIFEST, STARTED, CURRENT, LOCK = "manifest.json", "started.json", "current", ".lock"
NOTES = "notes.json"
MERGED = "merged"  # the folder of a run that holds merged models
MANIFEST_FORMAT = 1
SHOWN = 8  # artifacts in a message
FINGERPRINT_KEY = b"perpo_fingerprint"
SCHEMA_VERSION_KEY = b"perpo_schema_version"

Json = dict[str, Any]


@dataclass(frozen=True)
class Version:
    """One complete version of an artifact on disk."""

    path: Path
    manifest: Json

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def artifact(self) -> str:
        return str(self.manifest["artifact"])

    @property
    def variant(self) -> str:
        return str(self.manifest["variant"])

    def parts(self, table: str | None = None) -> list[Path]:
        """Paths of the Parquet parts of `table` (the artifact's own table by default), in order."""
        name = table or self.artifact
        return [self.path / p["file"] for p in self.manifest["parts"] if p["table"] == name]

    def table(self, table: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Read all rows of `table` into memory."""
        schema = self.schema(table).columns
        tables = [_read_part(part, columns) for part in self.parts(table)]
        if tables:
            return pa.concat_tables(tables)
        wanted = schema if columns is None else pa.schema([schema.field(c) for c in columns])
        return wanted.empty_table()

    def schema(self, table: str | None = None) -> TableSchema:
        """The schema of `table` (the artifact's own by default)."""
        return ALL[table or self.artifact]

    def part(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one part of the artifact's own table."""
        return _read_part(self.parts()[index], columns)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the artifact's rows part by part."""
        for part in self.parts():
            yield _read_part(part, columns)


@dataclass(frozen=True)
class Recipe:
    """All that decides the content of a version; its hash is the fingerprint.

    `settings` are the ones that change the result; `notes` are recorded and do not count.
    """

    artifact: str
    variant: str
    stage: str
    stage_version: int
    settings: Json
    inputs: dict[str, Version] = field(default_factory=dict)
    notes: Json = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the sha256 of the recipe, in canonical JSON."""
        recipe = {
            "artifact": self.artifact,
            "stage": self.stage,
            "stage_version": self.stage_version,
            "schema_version": ALL[self.artifact].version,
            "settings": self.settings,
            "inputs": {name: version.fingerprint for name, version in self.inputs.items()},
        }
        text = json.dumps(recipe, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Writer:
    """Writes one version, part by part; made by `open_writer`, which also holds its lock."""

    def __init__(self, root: Path, recipe: Recipe) -> None:
        self.root, self.recipe = root, recipe
        self.path = root / recipe.fingerprint
        self.learned: Json = self._earlier_notes()
        self.started_at = time.monotonic()
        self._done = self._whole_parts()

    def has_part(self, index: int) -> bool:
        """Whether the part was finished by an earlier, interrupted run."""
        return self._part_name(self.recipe.artifact, index) in self._done

    def read_part(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read back a part written earlier."""
        return _read_part(self.path / self._part_name(self.recipe.artifact, index), columns)

    def read_rows(self, columns: Sequence[str], table: str | None = None) -> Iterator[pa.Table]:
        """Read back all that is written of `table` (the artifact's own by default), in order."""
        name = table or self.recipe.artifact
        for part in sorted(self._done):
            if self._table_of(part) == name:
                yield _read_part(self.path / part, columns)

    def write_part(self, index: int, rows: pa.Table | list[Json], table: str | None = None) -> None:
        """Write one part whole or not at all, through the declared schema (no inferred types).

        Parts of a table beside the artifact's own (dropped lists, errors) must be written before
        the part that they belong to, since that one marks the step as done.
        """
        name = table or self.recipe.artifact
        data = _conform(rows, ALL[name], self.recipe.fingerprint)
        part = self._part_name(name, index)
        write_atomically(self.path / part, lambda sink: pq.write_table(data, sink))
        self._done[part] = data.num_rows

    def note(self, name: str, what: Any) -> None:
        """Record for the manifest what only turned out at work; a kill does not lose it."""
        self.learned[name] = what
        text = json.dumps(self.learned, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(self.path / NOTES, lambda sink: sink.write(text.encode()))

    def finish(self, counts: Json | None = None, extra: Json | None = None) -> Version:
        """Write the manifest, point `current` here and return the complete version."""
        manifest = self._manifest(counts or {}, extra or {})
        text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(self.path / MANIFEST, lambda sink: sink.write(text.encode()))
        set_current(self.root, self.path.name)
        return Version(self.path, manifest)

    def _manifest(self, counts: Json, extra: Json) -> Json:
        recipe = self.recipe
        main = ALL[recipe.artifact]
        parts = [self._part_record(name) for name in sorted(self._done)]
        return {
            "manifest_format": MANIFEST_FORMAT,
            "artifact": recipe.artifact,
            "variant": recipe.variant,
            "schema_version": main.version,
            "stage": recipe.stage,
            "stage_version": recipe.stage_version,
            "fingerprint": recipe.fingerprint,
            "settings": recipe.settings,
            "notes": recipe.notes | self.learned,
            "inputs": _lineage_records(self.path, recipe.inputs),
            "rows": sum(p["rows"] for p in parts if p["table"] == main.name),
            "parts": parts,
            "files": self._other_files(),
            "counts": counts,
            "packages": package_versions(),
            "git_commit": git_commit(),
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "wall_s": round(time.monotonic() - self.started_at, 3),
            **extra,
        }

    def _part_record(self, name: str) -> Json:
        return {
            "file": name,
            "table": self._table_of(name),
            "rows": self._done[name],
            "sha256": file_sha256(self.path / name),
        }

    def _other_files(self) -> list[Json]:
        known = {MANIFEST, STARTED, NOTES, LOCK, *self._done}
        files = [p for p in sorted(self.path.iterdir()) if p.is_file() and p.name not in known]
        return [{"file": p.name, "sha256": file_sha256(p)} for p in files]

    def _earlier_notes(self) -> Json:
        file = self.path / NOTES
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}

    def _part_name(self, table: str, index: int) -> str:
        prefix = "part" if table == self.recipe.artifact else table
        return f"{prefix}-{index:05d}.parquet"

    def _table_of(self, part: str) -> str:
        prefix = part.rsplit("-", 1)[0]
        return self.recipe.artifact if prefix == "part" else prefix

    def _whole_parts(self) -> dict[str, int]:
        """Rows of each part that an earlier run of this recipe has left; others are removed.

        So is what belongs to a part that is not there: it will be made again with it.
        """
        done = {}
        for part in sorted(self.path.glob("*.parquet")):
            rows = _rows_if_of(part, self.recipe.fingerprint)
            index = int(part.stem.rsplit("-", 1)[1])
            main = self.path / self._part_name(self.recipe.artifact, index)
            if rows is None or not main.is_file():
                part.unlink()
            else:
                done[part.name] = rows
        return done


def find_complete(root: Path, recipe: Recipe) -> Version | None:
    """The complete version of this recipe under `root`, made current, or None."""
    path = root / recipe.fingerprint
    if not (path / MANIFEST).is_file():
        return None
    version = open_version(path, recipe.artifact)
    set_current(root, path.name)
    return version


@contextmanager
def open_writer(root: Path, recipe: Recipe) -> Iterator[Writer]:
    """Start or resume a version under `root`; one process at a time.

    Raises `ArtifactError` if another process is writing it or the disk refuses.
    """
    path = root / recipe.fingerprint
    with os_errors_explained(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / LOCK).open("w")
    try:
        _lock_or_raise(lock, path)
        for leftover in path.glob("*.tmp"):
            leftover.unlink()
        started = {
            "fingerprint": recipe.fingerprint,
            "stage": recipe.stage,
            "settings": recipe.settings,
            "inputs": _lineage_records(path, recipe.inputs),
        }
        text = json.dumps(started, indent=2, allow_nan=False) + "\n"
        if not (path / STARTED).is_file():
            write_atomically(path / STARTED, lambda sink: sink.write(text.encode()))
        yield Writer(root, recipe)
    finally:
        lock.close()


def open_version(path: Path, artifact: str | None = None) -> Version:
    """Open a complete version: its own directory, or the directory that holds `current`.

    Raises `ArtifactError` if there is none, it is unfinished, of another kind, or of a schema
    version that this program does not read.
    """
    directory = _follow_current(path)
    manifest = _read_manifest(directory)
    if artifact is not None and manifest["artifact"] != artifact:
        raise ArtifactError(
            f"this is an artifact of kind '{manifest['artifact']}', not '{artifact}'",
            where=str(directory),
            fix=f"give the directory of a '{artifact}' artifact",
        )
    _check_schema_version(directory, manifest)
    return Version(directory, manifest)


def input_of(version: Version, artifact: str) -> Version:
    """Find the nearest `artifact` in the lineage of `version`; raises `ArtifactError`."""
    frontier = [version]
    while frontier:
        at = frontier.pop(0)
        for record in at.manifest["inputs"].values():
            parent = open_version(at.path / record["path"])
            if parent.artifact == artifact:
                return parent
            frontier.append(parent)
    raise ArtifactError(
        f"no '{artifact}' artifact in the lineage",
        where=str(version.path),
        fix=f"name it with --{artifact}",
    )


def set_current(root: Path, name: str) -> None:
    """Let the small file `current` name the version in use (its time stamp is what Make reads)."""
    write_atomically(root / CURRENT, lambda sink: sink.write(f"{name}\n".encode()))


def adopt_files(source: Path, writer: Writer) -> None:
    """Move files that a library wrote (an adapter, a page) from `source` into the version."""
    for file in sorted(source.iterdir()):
        with os_errors_explained(writer.path), file.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(file, writer.path / file.name)
    sync_directory(writer.path)
    shutil.rmtree(source)


def damaged_files(version: Version) -> list[str]:
    """Names of the files that are missing or whose sha256 differs from the manifest."""
    records = [*version.manifest["parts"], *version.manifest["files"]]
    return [
        r["file"]
        for r in records
        if not (version.path / r["file"]).is_file()
        or file_sha256(version.path / r["file"]) != r["sha256"]
    ]


def being_written(path: Path) -> bool:
    """Whether a running process holds the lock of the version directory."""
    try:
        with (path / LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _lock_or_raise(lock: IO[str], path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ArtifactError(
            "another process is writing this version",
            where=str(path),
            fix="wait until it ends, then run the same command",
        ) from None


def _follow_current(path: Path) -> Path:
    pointer = path / CURRENT
    if not pointer.is_file():
        return path
    name = pointer.read_text().strip()
    if not name or Path(name).name != name:
        raise ArtifactError(
            f"names no version: {name!r}", where=str(pointer), fix="rerun the stage that writes it"
        )
    return path / name


def _read_manifest(directory: Path) -> Json:
    file = directory / MANIFEST
    if not file.is_file():
        raise _nothing_there(directory)
    try:
        manifest: Json = json.loads(file.read_text())
        _ = manifest["artifact"], manifest["schema_version"], manifest["fingerprint"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"the manifest cannot be read: {error}",
            where=str(file),
            fix="remove this directory and the file `current` beside it, then rerun its stage",
        ) from error
    return manifest


def _nothing_there(directory: Path) -> ArtifactError:
    """What is at a place where a complete version was expected."""
    where = str(directory)
    if (directory / STARTED).is_file():
        return ArtifactError(
            "this artifact is unfinished",
            where=where,
            fix="run the stage that makes it again: it resumes",
        )
    if not directory.is_dir():
        return ArtifactError("there is no such directory", where=where, fix="correct the path")
    inside = [path.parent for path in sorted(directory.glob(f"*/{CURRENT}"))]
    inside += [path.parent for path in sorted(directory.glob(f"*/*/{CURRENT}"))]
    names = ", ".join(str(path.relative_to(directory)) for path in inside[:SHOWN])
    return ArtifactError(
        "no artifact here" + f", but in {names}{', ...' * (len(inside) > SHOWN)}" * bool(inside),
        where=where,
        fix="give one of these" if inside else "run the stage that makes it",
    )


def _check_schema_version(directory: Path, manifest: Json) -> None:
    name, found = manifest["artifact"], manifest["schema_version"]
    known = ALL[name].version if name in ALL else None
    if known == found:
        return
    newer = known is None or found > known
    raise ArtifactError(
        f"schema version {found} of '{name}' is not the one this program reads ({known})",
        where=str(directory),
        fix="it was made by a newer perpo: upgrade perpo"
        if newer
        else f"rerun `perpo {manifest.get('stage', name)}`",
    )


def _conform(rows: pa.Table | list[Json], schema: TableSchema, fingerprint: str) -> pa.Table:
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema.columns)
    table = table.select(schema.columns.names).cast(schema.columns)
    return table.replace_schema_metadata(
        {
            FINGERPRINT_KEY: fingerprint.encode(),
            SCHEMA_VERSION_KEY: str(schema.version).encode(),
        }
    )


def _rows_if_of(part: Path, fingerprint: str) -> int | None:
    try:
        metadata = pq.read_metadata(part)
    except (pa.ArrowInvalid, OSError):
        return None
    found = (metadata.metadata or {}).get(FINGERPRINT_KEY, b"").decode()
    return int(metadata.num_rows) if found == fingerprint else None


def _read_part(part: Path, columns: Sequence[str] | None = None) -> pa.Table:
    try:
        with pq.ParquetFile(part) as file:
            return file.read(columns=None if columns is None else list(columns))
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(
            f"a part is missing or damaged: {error}",
            where=str(part),
            fix="remove its directory and the file `current` beside that, then rerun its stage",
        ) from error


def _lineage_records(path: Path, inputs: Mapping[str, Version]) -> Json:
    return {
        name: {
            "artifact": version.artifact,
            "variant": version.variant,
            "path": os.path.relpath(version.path.resolve(), path.resolve()),
            "fingerprint": version.fingerprint,
        }
        for name, version in inputs.items()
    }
