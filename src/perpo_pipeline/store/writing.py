"""Writing artifacts: a recipe, its fingerprint, and a writer that survives a kill at any moment."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from perpo_pipeline.errors import ArtifactError, BeingWrittenError, may_be_whole
from perpo_pipeline.store.artifacts import (
    FINGERPRINT_KEY,
    LOCK,
    MANIFEST,
    NOTES,
    SCHEMA_VERSION_KEY,
    STARTED,
    Json,
    Version,
    read_part,
)
from perpo_pipeline.store.atomic import (
    file_sha256,
    os_errors_explained,
    sync_directory,
    write_atomically,
)
from perpo_pipeline.store.current import set_current
from perpo_pipeline.store.made_from import place_of, records_of
from perpo_pipeline.store.provenance import git_commit, machine_kind, package_versions
from perpo_pipeline.store.schemas import ALL, TableSchema

MANIFEST_FORMAT = 1
WALL_S = "wall_s"  # in the notes: the seconds of earlier sittings
KEEP_TIME_S = 30.0
_PART = re.compile(rf"(?:part|{'|'.join(ALL)})-([0-9]{{5,}})\.parquet")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the content of a version; its hash is the fingerprint.

    `settings` change the result (config/fingerprints.py declares which do); `notes` are recorded in
    the manifest and do not count, nor do `options`, which the command line gave. With `aside` the
    version does not become the one in use: `current` stays as it is.
    """

    artifact: str
    variant: str
    stage: str
    stage_version: int
    settings: Json
    inputs: dict[str, Version] = field(default_factory=dict)
    notes: Json = field(default_factory=dict)
    options: Json = field(default_factory=dict)
    aside: bool = False

    @property
    def fingerprint(self) -> str:
        """What names the version: a hash of all that counts (`fingerprint_of`)."""
        return fingerprint_of(
            {
                "artifact": self.artifact,
                "stage": self.stage,
                "stage_version": self.stage_version,
                "schema_version": ALL[self.artifact].counted_version,
                "settings": self.settings,
                "inputs": {name: version.identity for name, version in self.inputs.items()},
            }
        )

    def place(self, root: Path) -> Path:
        """The version's folder under `root` (store/made_from.py), which need not exist."""
        return place_of(root, self.fingerprint, self.inputs)


def fingerprint_of(recipe: Mapping[str, Any]) -> str:
    """First 16 hex digits of the sha256 of a recipe, in canonical JSON."""
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Writer:
    """Writes one version, part by part. `open_writer` makes it and holds its lock."""

    def __init__(self, root: Path, recipe: Recipe) -> None:
        self.root, self.recipe = root, recipe
        self.path = recipe.place(root)
        self.learned: Json = self._earlier_notes()
        self.earlier_s = float(self.learned.pop(WALL_S, 0.0))
        self.started_at = self.time_kept_at = time.monotonic()
        self._done = self._whole_parts()

    def has_part(self, index: int) -> bool:
        """Whether the part is written, by this run or by an interrupted earlier one."""
        return self._part_name(self.recipe.artifact, index) in self._done

    def read_part(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a part that is already written."""
        name = self._part_name(self.recipe.artifact, index)
        return read_part(self.path / name, columns, self.recipe.artifact)

    def parts(self) -> list[Path]:
        """Paths of the written parts of the artifact's own table, in order."""
        name = self.recipe.artifact
        parts = sorted(self._done, key=_place_of)
        return [self.path / part for part in parts if self._table_of(part) == name]

    def read_rows(self, columns: Sequence[str], table: str | None = None) -> Iterator[pa.Table]:
        """Read the written parts of `table`, in order (default: the artifact's own table)."""
        name = table or self.recipe.artifact
        for part in sorted(self._done, key=_place_of):
            if self._table_of(part) == name:
                yield read_part(self.path / part, columns, name)

    def write_part(self, index: int, rows: pa.Table | list[Json], table: str | None = None) -> None:
        """Write one part, whole or not at all, with the types of the declared schema.

        Write parts of other tables (dropped lists, errors) before the artifact's own part with
        the same index: that one marks the step as done.
        """
        name = table or self.recipe.artifact
        data = _conform(rows, ALL[name], self.recipe.fingerprint)
        part = self._part_name(name, index)
        write_atomically(self.path / part, lambda sink: pq.write_table(data, sink))
        self._done[part] = data.num_rows
        self.keep_time()

    def note(self, name: str, what: Any) -> None:
        """Record a fact that the stage learned, for the manifest; a kill does not lose it."""
        self.learned[name] = what
        self._write_notes()

    @property
    def wall_s(self) -> float:
        """Seconds of work on this version, over all sittings."""
        return round(self.earlier_s + time.monotonic() - self.started_at, 3)

    def keep_time(self) -> None:
        """Record the time worked so far, at most twice a minute; a kill does not lose it."""
        if time.monotonic() - self.time_kept_at >= KEEP_TIME_S:
            self._write_notes()

    def keep_time_of_what_is_kept(self) -> None:
        """Record the time worked if a later sitting goes on from something; never raises."""
        begun = {STARTED, NOTES, LOCK}
        with suppress(ArtifactError):
            if any(entry.name not in begun for entry in self.path.iterdir()):
                self._write_notes()

    def num_rows(self) -> int:
        """Rows of the artifact's own table that are written."""
        artifact = self.recipe.artifact
        return sum(n for part, n in self._done.items() if self._table_of(part) == artifact)

    def _write_notes(self) -> None:
        self.time_kept_at = time.monotonic()
        notes = self.learned | {WALL_S: self.wall_s}
        text = json.dumps(notes, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(self.path / NOTES, lambda sink: sink.write(text.encode()))

    def finish(self, counts: Json | None = None, extra: Json | None = None) -> Version:
        """Write the manifest, make `current` name this version unless it is made aside, and return
        it."""
        manifest = self._manifest(counts or {}, extra or {})
        text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(self.path / MANIFEST, lambda sink: sink.write(text.encode()))
        use(self.root, self.path.name, self.recipe)
        return Version(self.path, manifest)

    def _manifest(self, counts: Json, extra: Json) -> Json:
        recipe = self.recipe
        main = ALL[recipe.artifact]
        parts = [self._part_record(name) for name in sorted(self._done, key=_place_of)]
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
            "options": recipe.options,
            "inputs": records_of(self.path, recipe.inputs),
            "rows": sum(p["rows"] for p in parts if p["table"] == main.name),
            "parts": parts,
            "files": self._other_files(),
            "counts": counts,
            "packages": package_versions(),
            "git_commit": git_commit(),
            "machine": machine_kind(),
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "wall_s": self.wall_s,
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
        """The number of rows in each part that an interrupted run of this recipe left.

        Removes all other parts, and parts of other tables whose main part is missing: the stage
        writes them again. Files of other names are not perpo's, and stay.
        """
        done = {}
        for part in sorted(self.path.glob("*.parquet")):
            if (named := _PART.fullmatch(part.name)) is None:
                continue
            rows = _rows_if_of(part, self.recipe.fingerprint)
            main = self.path / self._part_name(self.recipe.artifact, int(named[1]))
            if rows is None or not main.is_file():
                part.unlink()
            else:
                done[part.name] = rows
        return done


def _place_of(part: str) -> tuple[str, int]:
    """What orders parts: their table, then their number, which may have more than five digits."""
    table, number = part.removesuffix(".parquet").rsplit("-", 1)
    return table, int(number)


def use(root: Path, name: str, recipe: Recipe) -> None:
    """Make a version of a recipe the one in use, unless the recipe is made aside."""
    if not recipe.aside:
        set_current(root, name, recipe.options)


@contextmanager
def open_writer(root: Path, recipe: Recipe) -> Iterator[Writer]:
    """Start or resume writing a version under `root`; one process at a time.

    Raises `BeingWrittenError` if another process is writing it, and `ArtifactError` if the disk
    refuses.
    """
    path = recipe.place(root)
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
            "options": recipe.options,
            "inputs": records_of(path, recipe.inputs),
        }
        text = json.dumps(started, indent=2, allow_nan=False) + "\n"
        if not (path / STARTED).is_file():
            write_atomically(path / STARTED, lambda sink: sink.write(text.encode()))
        writer = Writer(root, recipe)
        try:
            yield writer
        except BaseException:
            writer.keep_time_of_what_is_kept()
            raise
    finally:
        lock.close()


def adopt_files(source: Path, writer: Writer) -> None:
    """Move files that a library wrote (an adapter, a page) from `source` into the version.

    They get the mode of the version's own files, which the umask decides: safetensors makes its
    files private.
    """
    mode = (writer.path / STARTED).stat().st_mode
    for file in sorted(source.iterdir()):
        if file.is_file():
            file.chmod(mode)
        with os_errors_explained(writer.path), file.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(file, writer.path / file.name)
    sync_directory(writer.path)
    shutil.rmtree(source)


def _lock_or_raise(lock: IO[str], path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BeingWrittenError(
            "another process is writing this version",
            where=str(path),
            fix="wait until that process ends, then run the same command",
        ) from None


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
    """The number of rows of a part of this recipe; None for another one, or one that is torn.

    Raises OSError where the system does not let it be read: it may be whole.
    """
    try:
        metadata = pq.read_metadata(part)
    except (pa.ArrowInvalid, OSError) as error:
        if may_be_whole(error):
            raise
        return None
    found = (metadata.metadata or {}).get(FINGERPRINT_KEY, b"").decode()
    return int(metadata.num_rows) if found == fingerprint else None
