"""Parquet and Arrow files with images inside: rows without their images, and each image on demand.

Images are bytes, or the struct {bytes, path} that `datasets` writes. Only one row group of images
is in memory at a time; an Arrow file of `datasets` is mapped and takes none.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.json_files import Row, missing_file


class Shard(Protocol):
    """One file of rows, in groups; `name` is its name in keys and messages."""

    path: Path
    name: str
    schema: pa.Schema
    num_groups: int

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """These columns of one group; raises as pyarrow does."""


class ParquetShard:
    """A Parquet file; its groups are row groups."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        with pq.ParquetFile(path) as file:
            self.schema, self.num_groups = file.schema_arrow, file.num_row_groups

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """These columns of one row group."""
        with pq.ParquetFile(self.path) as file:
            return file.read_row_group(group, columns=list(columns))


class ArrowShard:
    """An Arrow stream as `datasets` saves it; its groups are record batches of the mapped file."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
            self.schema, self.batches = stream.schema, list(stream)
        self.num_groups = len(self.batches)

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """These columns of one record batch."""
        return pa.Table.from_batches([self.batches[group]]).select(list(columns))


def open_shards(files: Sequence[Path], path: Path, *, fix: str) -> list[Shard]:
    """The files as shards, named from the folder that they have in common.

    `path` is the setting that names them. Raises `ConfigError` if there are none or one is missing,
    `InputError` for a file that is neither Parquet nor Arrow.
    """
    if not files and path.is_dir():
        raise ConfigError(
            "no such file: the folder has no Parquet file, and no Arrow file that `datasets` saved",
            where=str(path),
            fix="name the folder that has them, or a single file",
        )
    if not files or not all(file.is_file() for file in files):
        raise missing_file(path)
    base = common_folder(files)
    shards: list[Shard] = []
    for file in files:
        is_arrow = file.suffix == ".arrow"
        try:
            shard = (ArrowShard if is_arrow else ParquetShard)(file, str(file.relative_to(base)))
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(file, error, fix) from error
        names = shard.schema.names
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise InputError(
                f"the file has {', '.join(map(repr, twice))} twice",
                where=str(file),
                fix="give each column its own name",
            )
        shards.append(shard)
    return shards


def common_folder(files: Sequence[Path]) -> Path:
    """The lowest folder that holds all files."""
    return next(p for p in files[0].parents if all(file.is_relative_to(p) for file in files))


class HeldImages:
    """The images of one group of one shard, which is all that is in memory at a time.

    Columns of one group are held together: rows whose images are in several take turns.
    """

    def __init__(self) -> None:
        self.held: tuple[Path, int] | None = None
        self.columns: dict[str, Any] = {}

    def at(self, shard: Shard, group: int, row: int, column: str) -> Any:
        """The images of a row of a group: bytes, or {bytes, path}, or a list of these."""
        if self.held != (shard.path, group):
            self.held, self.columns = (shard.path, group), {}
        if column not in self.columns:
            self.columns[column] = shard.read(group, [column])[column]
        return self.columns[column][row]


@dataclass(frozen=True)
class ShardImage:
    """An image inside a shard; `number` is its row in the whole file, from 1.

    `index` is its place, from 0, in the list of images that the row has; None for a single image.
    """

    shard: Shard
    images: HeldImages
    column: str
    group: int
    row: int
    number: int
    index: int | None = None

    @property
    def path(self) -> Path | None:
        """None: it has no file of its own."""
        return None

    def read(self) -> bytes:
        """Its bytes; raises `InputError`."""
        try:
            found = self.images.at(self.shard, self.group, self.row, self.column)
            image = (found if self.index is None else found[self.index]).as_py()
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"the image cannot be read: {error}", where=str(self)) from error
        data = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(data, bytes):
            raise InputError("the row holds no image bytes", where=str(self))
        return data

    def __str__(self) -> str:
        return f"in {self.shard.name}, row {self.number}"


def shard_rows(
    shard: Shard, image_column: str, images: HeldImages, *, columns: Sequence[str], fix: str
) -> Iterator[tuple[ShardImage, Row]]:
    """Each row's image, unread, and the row with these columns.

    Numbers of a ClassLabel column of `datasets` become their names. Raises `InputError` if the file
    cannot be read.
    """
    names = _class_names(shard.schema)
    number = 0
    try:
        for group in range(shard.num_groups):
            table = shard.read(group, columns)
            for index, row in enumerate(_in_words(shard, table, number, names)):
                number += 1
                yield ShardImage(shard, images, image_column, group, index, number), row
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(shard.path, error, fix) from error


class ImagePlaces:
    """Where the images of a shard are: inside it, or in files of their own.

    `in_lists`: a row of the column may be a list of images.
    """

    def __init__(self, shard: Shard, column: str, in_lists: bool, *, fix: str) -> None:
        self.shard, self.column, self.group, self.fix = shard, column, -1, fix
        self.in_lists = in_lists
        self.found: list[Any] = []

    def at(self, image: ShardImage) -> Any:
        """The image itself if the row holds its bytes, else the path in the row, else None.

        Where the row has a list of images, a list of the same. Raises `InputError` if the file
        cannot be read.
        """
        if image.group != self.group:
            try:
                self.found, self.group = self._look(image), image.group
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(self.shard.path, error, self.fix) from error
        found, image = self.found[image.row], replace(image, column=self.column)
        if self.in_lists and isinstance(found, list):
            return [replace(image, index=i) if one is True else one for i, one in enumerate(found)]
        return image if found is True else found

    def _look(self, first: ShardImage) -> list[Any]:
        kind, before = self.shard.schema.field(self.column).type, first.number - first.row - 1
        column = self.shard.read(first.group, [self.column])[self.column]
        if self.in_lists and pa.types.is_fixed_size_list(kind):  # as `datasets` saves a length
            kind = pa.list_(kind.value_type)
            column = column.cast(kind)
        if self.in_lists and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            flat = iter(self._look_at(pc.list_flatten(column), kind.value_type, before))
            lengths = pc.list_value_length(column).to_pylist()
            return [None if n is None else [next(flat) for _ in range(n)] for n in lengths]
        return self._look_at(column, kind, before)

    def _look_at(self, column: Any, kind: pa.DataType, before: int) -> list[Any]:
        """True for each image whose bytes are there, else its path, else None."""
        if pa.types.is_dictionary(kind) and _is_binary(kind.value_type):
            column, kind = column.cast(kind.value_type), kind.value_type
        if _is_binary(kind):
            return [True if there else None for there in pc.is_valid(column).to_pylist()]
        if not pa.types.is_struct(kind):
            return _python_values(self.shard, column, self.column, before)
        fields = {field.name: pc.struct_field(column, field.name) for field in kind}
        nothing = [None] * len(column)
        inside = pc.is_valid(fields["bytes"]).to_pylist() if "bytes" in fields else nothing
        paths = nothing
        if "path" in fields:
            paths = _python_values(self.shard, fields["path"], self.column, before)
        return [True if there else path for there, path in zip(inside, paths, strict=True)]


def _is_binary(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _class_names(schema: pa.Schema) -> Mapping[str, Sequence[str]]:
    """The names of each ClassLabel column's classes, which `datasets` keeps beside the schema.

    A column of anything but whole numbers has none, whatever the metadata says.
    """
    try:
        text = (schema.metadata or {}).get(b"huggingface", b"{}")
        features = json.loads(text).get("info", {}).get("features", {})
        return {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict)
            and feature.get("_type") == "ClassLabel"
            and isinstance(feature.get("names"), list)
            and name in schema.names
            and pa.types.is_integer(schema.field(name).type)
        }
    except (ValueError, AttributeError, RecursionError):  # somebody else's metadata
        return {}


def _in_words(
    shard: Shard, table: pa.Table, before: int, names: Mapping[str, Sequence[str]]
) -> list[Row]:
    """The rows, with names for the numbers of classes; -1 is no class.

    `before` rows of the shard come before the table's.
    """
    columns = [_python_values(shard, table[name], name, before) for name in table.column_names]
    rows: list[Row] = [
        dict(zip(table.column_names, cells, strict=True)) for cells in zip(*columns, strict=True)
    ] or [{} for _ in range(table.num_rows)]
    for column in names.keys() & set(table.column_names):
        classes = dict(enumerate(names[column]))
        for row in rows:
            row[column] = classes.get(row[column])
    return rows


def _python_values(shard: Shard, column: pa.ChunkedArray, name: str, before: int) -> list[Any]:
    """A column's values; raises `InputError` with the first row whose value has none in Python.

    Such are texts that are not UTF-8, and dates beyond the year 9999.
    """
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):
        for number, cell in enumerate(column, start=before + 1):
            try:
                cell.as_py()
            except (ValueError, OverflowError) as error:
                raise InputError(
                    f"{shard.name}, row {number}: column {name!r} cannot be read: {error}",
                    where=str(shard.path),
                    fix="correct this value, or leave the column out of the file",
                ) from error
        raise


def _unreadable(path: Path, error: Exception, fix: str) -> InputError:
    kind = "Arrow" if path.suffix == ".arrow" else "Parquet"
    return InputError(f"cannot be read as {kind}: {error}", where=str(path), fix=fix)
