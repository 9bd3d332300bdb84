"""Artifacts on disk, and the only reader of them (writing.py is the only writer).

    data/<run>/<artifact>/<variant>/current              names the version in use
    data/<run>/<artifact>/<variant>/options.json         the options that chose each version
    data/<run>/<artifact>/<variant>/<fingerprint>/
        started.json          first: fingerprint and settings
        notes.json            facts that the stage learned while it worked, if any
        part-00000.parquet    each part carries the fingerprint in its metadata
        manifest.json         last: a version is complete when it has a manifest

Every file is written, synced to disk and renamed, so a process killed at any moment leaves only
whole files. The same command then resumes after the last whole part. Nothing overwrites a version.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from perpo_pipeline import advice
from perpo_pipeline.errors import ArtifactError, may_be_whole, what_to_check
from perpo_pipeline.store.atomic import file_sha256
from perpo_pipeline.store.old_rules import as_today
from perpo_pipeline.store.row_ranges import open_parquet, read_columns
from perpo_pipeline.store.schemas import ALL, TableSchema
from perpo_pipeline.store.upgrades import columns_to_read, is_readable, upgrade_table
from perpo_pipeline.suggestions import closest_path

MANIFEST, STARTED, CURRENT, LOCK = "manifest.json", "started.json", "current", ".lock"
NOTES = "notes.json"
OPTIONS = "options.json"  # beside `current`: the options that chose each version last
MERGED = "merged"  # the folder of a run that holds merged models
MODEL = "model"  # the folder of a round that holds its merged model
SHOWN = 8  # artifacts named in a message
IN_EVERY_MANIFEST = (
    *("artifact", "variant", "stage", "stage_version", "schema_version", "fingerprint"),
    *("rows", "wall_s", "created_at", "git_commit"),
)
FINGERPRINT_KEY = b"perpo_fingerprint"
SCHEMA_VERSION_KEY = b"perpo_schema_version"

Json = dict[str, Any]


class _OtherSchema(ArtifactError):
    """An artifact has a schema version that this program does not read."""


@dataclass(frozen=True)
class Version:
    """One complete version of an artifact on disk."""

    path: Path
    manifest: Json

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def identity(self) -> str:
        """The fingerprint, and which prompts failed: that depends on more than the recipe."""
        parts = self.manifest["parts"]
        failed = (p["sha256"] for p in parts if p["table"] == "errors" and p["rows"])
        return "+".join([self.fingerprint, *failed])

    @property
    def artifact(self) -> str:
        return str(self.manifest["artifact"])

    @property
    def variant(self) -> str:
        return str(self.manifest["variant"])

    def remake(self) -> str:
        """The whole command that makes this artifact, for advice."""
        return advice.remake(self.artifact, self.variant, self.manifest.get("stage"))

    def parts(self, table: str | None = None) -> list[Path]:
        """Paths of the Parquet parts of `table`, in order (default: the artifact's own table)."""
        name = table or self.artifact
        return [self.path / p["file"] for p in self.manifest["parts"] if p["table"] == name]

    def table(self, table: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Read all rows of `table` into memory."""
        tables = [read_part(part, columns, table or self.artifact) for part in self.parts(table)]
        return pa.concat_tables(tables) if tables else self.schema(table).empty(columns)

    def schema(self, table: str | None = None) -> TableSchema:
        """The schema of `table` (default: the artifact's own table)."""
        return ALL[table or self.artifact]

    def part(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one part of the artifact's own table."""
        return read_part(self.parts()[index], columns, self.artifact)

    def rows(
        self, rows: range, columns: Sequence[str] | None = None, table: str | None = None
    ) -> pa.Table:
        """Read some rows of `table`, counted over all of its parts; memory holds no others."""
        name = table or self.artifact
        records = [one for one in self.manifest["parts"] if one["table"] == name]
        found, start = [], 0
        for record in records:
            inside = range(max(rows.start - start, 0), min(rows.stop - start, record["rows"]))
            if inside:
                found.append(read_part(self.path / record["file"], columns, name, inside))
            start += record["rows"]
        return pa.concat_tables(found) if found else self.schema(name).empty(columns)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the artifact's rows part by part."""
        for part in self.parts():
            yield read_part(part, columns, self.artifact)


def open_version(path: Path, artifact: str | None = None) -> Version:
    """Open a complete version, by its own directory or by the directory that holds `current`.

    Raises `ArtifactError` if no version is there, if it is unfinished, if it is another kind of
    artifact than `artifact`, or if this program cannot read its schema version.
    """
    directory = follow_current(path)
    manifest = read_manifest(directory)
    if artifact is not None and manifest["artifact"] != artifact:
        raise ArtifactError(
            f"this is a '{manifest['artifact']}' artifact, not a '{artifact}' artifact",
            where=str(directory),
            fix=f"give the directory of a '{artifact}' artifact",
        )
    _check_schema_version(directory, manifest)
    settings = as_today(manifest["artifact"], manifest.get("stage", ""), manifest["settings"])
    return Version(directory, {**manifest, "settings": settings})


def input_of(version: Version, artifact: str) -> Version:
    """The nearest `artifact` in the lineage of `version`; raises `ArtifactError` if it has none."""
    frontier = [version]
    while frontier:
        at = frontier.pop(0)
        for record in at.manifest["inputs"].values():
            parent = _open_input(at, record["path"])
            if parent.artifact == artifact:
                return parent
            frontier.append(parent)
    raise ArtifactError(
        f"no '{artifact}' artifact in the lineage",
        where=str(version.path),
        fix=f"give its directory with --{artifact}",
    )


def _open_input(child: Version, path: str) -> Version:
    """An input of `child`; if this program cannot read its schema, the error says what to redo."""
    try:
        return open_version(child.path / path)
    except _OtherSchema as error:
        raise ArtifactError(
            f"{error.what}; '{child.artifact}' {child.variant} was made from it",
            where=error.where,
            fix=f"{error.fix}, then the stages after it, up to: {child.remake()}",
        ) from error


def require_parts(version: Version) -> None:
    """Raise `ArtifactError` if parts are missing, as after a copy that was stopped."""
    if gone := [part.name for part in version.parts() if not part.is_file()]:
        raise ArtifactError(
            f"{len(gone)} of {len(version.parts())} parts are missing, for example {gone[0]}",
            where=str(version.path),
            fix="copy them again; or remove this directory and the `current` beside it, then run: "
            + version.remake(),
        )


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


def follow_current(path: Path) -> Path:
    """The version in use of the artifact at `path`, or `path` itself if it holds no `current`."""
    pointer = path / CURRENT
    if not pointer.is_file():
        return path
    name = pointer.read_text().strip()
    if not name or Path(name).name != name:
        raise ArtifactError(
            f"the file does not name a version: {name!r}",
            where=str(pointer),
            fix=f"remove this file and run: {_remake(path / MANIFEST)}",
        )
    if not (path / name).is_dir():
        raise ArtifactError(
            f"the file names a version that is not there: {name}",
            where=str(pointer),
            fix=f"remove this file and run: {_remake(path / name)}",
        )
    return path / name


def read_manifest(directory: Path) -> Json:
    """The manifest of a version, of whatever schema version; raises `ArtifactError`."""
    file = directory / MANIFEST
    try:
        if not file.is_file():
            raise _nothing_there(directory)
        manifest: Json = json.loads(file.read_text(encoding="utf-8"))
        _check_names(manifest)
    except OSError as error:
        raise _cannot_be_read("the manifest", file, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        lacks = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ArtifactError(
            f"the manifest cannot be read: {lacks}",
            where=str(file),
            fix="remove this directory and the file `current` beside it, then run: "
            + _remake(directory),
        ) from error
    return manifest


def _check_names(manifest: Json) -> None:
    """Raise KeyError, TypeError or AttributeError unless all is there that every manifest has."""
    _ = [manifest[name] for name in IN_EVERY_MANIFEST]
    _ = [manifest[name].items() for name in ("settings", "notes", "counts", "packages")]
    for records, names in (
        (manifest["inputs"].values(), ("artifact", "variant", "path", "fingerprint")),
        (manifest["parts"], ("file", "table", "rows", "sha256")),
        (manifest["files"], ("file", "sha256")),
    ):
        _ = [record[name] for record in records for name in names]


def _cannot_be_read(what: str, file: Path, error: OSError) -> ArtifactError:
    """The error for a file that is there: it may be whole, so nobody should remove it."""
    return ArtifactError(
        f"{what} cannot be read: {os.strerror(error.errno) if error.errno else error}",
        where=str(file),
        fix=what_to_check(error),
    )


def _nothing_there(directory: Path) -> ArtifactError:
    """The error for a directory without a complete version: what it holds instead."""
    where = str(directory)
    if (directory / STARTED).is_file():
        return ArtifactError(
            "this artifact is unfinished",
            where=where,
            fix=f"run, which resumes it: {_remake(directory)}",
        )
    if not directory.is_dir():
        near = closest_path(directory)
        return ArtifactError(
            "this directory does not exist",
            where=where,
            fix=f"did you mean {near}?" if near else "correct the path",
        )
    inside = [path.parent for path in sorted(directory.glob(f"*/{CURRENT}"))]
    inside += [path.parent for path in sorted(directory.glob(f"*/*/{CURRENT}"))]
    names = ", ".join(str(path.relative_to(directory)) for path in inside[:SHOWN])
    return ArtifactError(
        "this directory holds no artifact"
        + f"; artifacts are in {names}{', ...' * (len(inside) > SHOWN)}" * bool(inside),
        where=where,
        fix="give one of these directories" if inside else f"run: {_remake(directory / MANIFEST)}",
    )


def _check_schema_version(directory: Path, manifest: Json) -> None:
    name, found = manifest["artifact"], manifest["schema_version"]
    if name in ALL and is_readable(ALL[name], found):
        return
    known = ALL[name].version if name in ALL else None
    newer = known is None or not isinstance(found, int) or found > known
    raise _OtherSchema(
        f"this program reads schema version {known} of '{name}', not version {found}",
        where=str(directory),
        fix="a newer perpo made it: upgrade perpo"
        if newer
        else f"run: {advice.remake(name, str(manifest.get('variant')), manifest.get('stage'))}",
    )


def read_part(
    part: Path,
    columns: Sequence[str] | None = None,
    table: str | None = None,
    rows: range | None = None,
) -> pa.Table:
    """Read a Parquet part, or some `rows` of it; an older schema version of `table` as today's.

    Without `table` it is read as it is. Raises `ArtifactError` if it is missing or damaged, if the
    system does not let it be read, or if its schema version is newer than this program.
    """
    try:
        with open_parquet(part, rows) as file:
            if table is None:
                return read_columns(file, columns, rows)
            return _read_as_today(file, part, columns, ALL[table], rows)
    except (pa.ArrowInvalid, OSError) as error:
        if may_be_whole(error):
            raise _cannot_be_read("a part", part, error) from error
        raise ArtifactError(
            f"a part is missing or damaged: {error}",
            where=str(part),
            fix="remove its directory and the `current` beside the directory, then run: "
            + _remake(part.parent),
        ) from error


def _remake(directory: Path) -> str:
    """The command that makes the version in `directory`, as far as the place says which it is."""
    variant, artifact = directory.parent.name, directory.parent.parent.name
    if artifact in advice.STAGE_OF:
        return advice.remake(artifact, variant)
    try:
        stage = json.loads((directory / STARTED).read_text())["stage"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        return "the command that made it"
    return advice.command(str(stage))


def _read_as_today(
    file: pq.ParquetFile,
    part: Path,
    columns: Sequence[str] | None,
    schema: TableSchema,
    rows: range | None,
) -> pa.Table:
    metadata = file.schema_arrow.metadata or {}
    version = int(metadata.get(SCHEMA_VERSION_KEY, str(schema.version)))
    if version == schema.version:
        return read_columns(file, columns, rows)
    if not is_readable(schema, version):
        raise _OtherSchema(
            f"this program reads schema version {schema.version} of '{schema.name}', not version "
            f"{version}",
            where=str(part),
            fix="a newer perpo made it: upgrade perpo",
        )
    stored = columns_to_read(schema, version, columns, file.schema_arrow.names)
    return upgrade_table(read_columns(file, stored, rows), schema, version, columns)
