"""The files of an export: Parquet in pieces, or JSON lines; both take tables part by part."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from perpo_pipeline.export.images import IMAGE_STRUCT

DATA = "data"  # the folder of Parquet files, as the hub names it
BYTES_PER_FILE = 500_000_000  # the size in which the hub wants files
BYTES_PER_GROUP = 100_000_000  # of rows that are read at once
IMAGES = pa.list_(IMAGE_STRUCT)


class Sink(Protocol):
    """Where the tables of an export go."""

    def write(self, table: pa.Table) -> None:
        """Write the rows of a table."""


@contextmanager
def parquet_files(folder: Path, split: str) -> Iterator[Sink]:
    """Files `data/SPLIT-00000-of-00002.parquet`, a new one after every 500 MB."""
    sink = _Parquet(folder / DATA, split)
    try:
        yield sink
        sink.finish()
    finally:
        sink.close()


@contextmanager
def json_lines(folder: Path, split: str) -> Iterator[Sink]:
    """One file `SPLIT.jsonl` in UTF-8, an object per line; keys without a value are null."""
    with json_lines_file(folder, split).open("wb") as file:
        yield _JsonLines(file)


def json_lines_file(folder: Path, split: str) -> Path:
    """The file that `json_lines` writes."""
    return folder / f"{split}.jsonl"


class _JsonLines:
    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, table: pa.Table) -> None:
        pl.DataFrame(table).write_ndjson(self.file)


class _Parquet:
    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self.files: list[Path] = []
        self.writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        table = table.replace_schema_metadata(_features(table.schema))
        if self.writer is None:
            self.folder.mkdir(exist_ok=True)
            self.files.append(self.folder / f"{self.split}-{len(self.files):05d}.parquet")
            self.writer = pq.ParquetWriter(self.files[-1], table.schema)
        # Readers cannot take a group of rows whose images exceed an Arrow array.
        at_once = max(1, len(table) * BYTES_PER_GROUP // max(1, table.nbytes))
        self.writer.write_table(table, row_group_size=at_once)
        if self.files[-1].stat().st_size >= BYTES_PER_FILE:
            self.close()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def finish(self) -> None:
        """Name the files as the hub does: each says how many there are."""
        self.close()
        for file in self.files:
            file.rename(file.with_stem(f"{file.stem}-of-{len(self.files):05d}"))


def _features(schema: pa.Schema) -> dict[str, str]:
    """What `datasets` reads beside the schema: which columns hold lists of images."""
    images = {"feature": {"_type": "Image"}, "_type": "Sequence"}
    found = {column.name: images for column in schema if column.type == IMAGES}
    return {"huggingface": json.dumps({"info": {"features": found}})} if found else {}
