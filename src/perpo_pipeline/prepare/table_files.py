"""The files of tables: JSON lines, a JSON list, CSV, TSV, Parquet, folders saved by `datasets`.

    jsonl      one JSON object per line
    json       one JSON list of objects
    csv, tsv   a header, then one row per line; quotes as in RFC 4180; an empty cell is no value
    parquet    a file, a folder of them, or a pattern with *
    datasets   a folder that `save_to_disk` wrote (Arrow files), or a folder of Parquet files

All of them give the same: rows with the file's own names. Images may be inside Parquet and Arrow
files (arrow_files.py); they stay there until they are used. A folder with several splits is
refused, because its rows would be mixed: names such as `train-00000-of-00002` say so, and words
such as `train` and `test` in the names of files and folders.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from perpo_pipeline.config.sources import TableSource
from perpo_pipeline.errors import InputError
from perpo_pipeline.json_files import (
    Faults,
    Row,
    read_json,
    read_json_lines,
    read_json_list,
    read_text,
)
from perpo_pipeline.prepare.arrow_files import (
    HeldImages,
    ImagePlaces,
    Shard,
    common_folder,
    open_shards,
    shard_rows,
)

DELIMITERS = {"csv": ",", "tsv": "\t"}
LONGEST_CELL = 2**31 - 1
_SHARD_NAME = re.compile(r"(.+?)-[0-9]{5}-of-[0-9]{5}.*")
_SPLITS = {"train", "validation", "val", "valid", "dev", "test", "eval", "testa", "testb"}
_FIX = "give whole files, as they were saved"


@dataclass(frozen=True)
class Record:
    """One row: its place for messages, its number as the default id, and its values by column."""

    place: str
    number: str
    row: Row


@dataclass(frozen=True)
class Table:
    """An open table; `columns` is None for JSON, where each row has its own keys."""

    columns: Sequence[str] | None
    records: Iterator[Record]
    files: Mapping[str, Path]  # by the names that they have in messages
    has_images: bool = False  # inside the files


def open_table(source: TableSource, image_columns: Mapping[str, bool], faults: Faults) -> Table:
    """The table that a source names; `image_columns` says of each column with images if it may hold
    lists of them.

    Rows that are no objects, or have another number of cells than the header, are faults. Raises
    `ConfigError` for a missing file, `InputError` for a file that cannot be read.
    """
    if source.source in DELIMITERS:
        return _open_text(source.path, DELIMITERS[source.source], faults)
    if source.source in ("parquet", "datasets"):
        return _open_shards(source, image_columns)
    is_list = source.source == "json"
    rows = (read_json_list if is_list else read_json_lines)(source.path, faults)
    unit = "record" if is_list else "line"
    records = (Record(f"{unit} {number}", str(number), row) for number, row in rows)
    return Table(None, records, {source.path.name: source.path})


def _open_text(path: Path, delimiter: str, faults: Faults) -> Table:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    header = next(_lines(reader, path), (1, list[str]()))[1]
    twice = [name for name in dict.fromkeys(header) if header.count(name) > 1]
    if twice:
        raise InputError(
            f"the header names {', '.join(map(repr, twice))} twice",
            where=str(path),
            fix="give each column its own name",
        )
    return Table(header, _text_records(reader, path, header, faults), {path.name: path})


def _text_records(reader: Any, path: Path, header: list[str], faults: Faults) -> Iterator[Record]:
    for line, cells in _lines(reader, path):
        place = f"line {line}"
        if len(cells) != len(header):
            faults.add(place, f"{len(cells)} cells, but the header has {len(header)}")
            continue
        row = {name: cell or None for name, cell in zip(header, cells, strict=True) if name}
        yield Record(place, str(line), row)


def _lines(reader: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line from 1 at which it begins, cells) of each row that is not blank."""
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"line {line} cannot be read: {error}",
                where=str(path),
                fix='put quotes around cells with quotes, commas or line ends, and write " as ""',
            ) from error
        if cells:
            yield line, cells


def _open_shards(source: TableSource, image_columns: Mapping[str, bool]) -> Table:
    shards = open_shards(_files_of_one_split(source), source.path, fix=_FIX)
    files = {shard.name: shard.path for shard in shards}
    columns = list(dict.fromkeys(name for shard in shards for name in shard.schema.names))
    return Table(columns, _shard_records(shards, image_columns), files, has_images=True)


def _shard_records(shards: Sequence[Shard], image_columns: Mapping[str, bool]) -> Iterator[Record]:
    images = HeldImages()
    for shard in shards:
        names = shard.schema.names
        places = [
            ImagePlaces(shard, name, in_lists, fix=_FIX)
            for name, in_lists in image_columns.items()
            if name in names
        ]
        wanted = [name for name in names if name not in image_columns]
        for image, row in shard_rows(shard, "", images, columns=wanted, fix=_FIX):
            row |= {one.column: one.at(image) for one in places}
            number = f"{shard.name}/{image.number}" if len(shards) > 1 else str(image.number)
            yield Record(f"{shard.name}, row {image.number}", number, row)


def _files_of_one_split(source: TableSource) -> list[Path]:
    """The files of a source; raises `InputError` if they are those of several splits."""
    folder = source.path
    if source.source == "datasets" and not folder.is_dir():
        raise InputError(
            "this is no folder" if folder.exists() else "there is no such folder",
            where=str(folder),
            fix="give the folder that `save_to_disk` wrote (a single file: source parquet)",
        )
    if source.source == "datasets" and (folder / "dataset_dict.json").is_file():
        found = read_json(folder / "dataset_dict.json")
        splits = found.get("splits", []) if isinstance(found, dict) else []
        raise _several_splits(source, [str(folder / str(name)) for name in splits])
    if source.source == "datasets" and (state := folder / "state.json").is_file():
        return _saved_files(state)
    files = source.files()
    by_shard = {_shards_of(file): file for file in reversed(files)}
    if len(by_shard) > 1:
        raise _several_splits(source, [_pattern_of(file) for file in by_shard.values()])
    by_word: dict[str, list[Path]] = {}
    for file in files:
        if word := _split_word(file.relative_to(source.folder)):
            by_word.setdefault(word, []).append(file)
    if len(by_word) > 1:
        raise _several_splits(source, [_name_of(some) for some in by_word.values()])
    return files


def _saved_files(state: Path) -> list[Path]:
    """The Arrow files of a saved dataset, in the order of its rows."""
    found = read_json(state)
    if isinstance(found, dict) and found.get("_indices_data_files"):
        raise InputError(
            "the folder was saved with a choice of rows in a file of their numbers "
            "(`_indices_data_files`), which is not read: rows outside the choice would be taken",
            where=str(state),
            fix="save it anew, with these rows alone: datasets.load_from_disk(FOLDER)"
            ".flatten_indices().save_to_disk(OTHER_FOLDER)",
        )
    try:
        return [state.parent / str(one["filename"]) for one in found["_data_files"]]
    except (KeyError, TypeError) as error:
        raise InputError(
            "the file names no data files (`_data_files`)", where=str(state), fix=_FIX
        ) from error


def _shards_of(file: Path) -> str:
    """What a file of the hub is a shard of: `train-00000-of-00002`, or `train/0000`.

    "" for a name of another kind.
    """
    if shard := _SHARD_NAME.fullmatch(file.stem):
        return str(file.parent / shard[1])
    return str(file.parent) if file.stem.isdecimal() else ""


def _split_word(place: Path) -> str:
    """The split that the name of a file says as a word of its own, or else its nearest folder.

    "" where none does: `data_train.parquet` and `train/a.parquet` are of `train`, `contest.parquet`
    of no split.
    """
    for name in (place.stem, *(folder.name for folder in place.parents)):
        words = (word.lower() for word in re.findall("[A-Za-z]+", name))
        if found := [word for word in words if word in _SPLITS]:
            return " ".join(found)
    return ""


def _pattern_of(file: Path) -> str:
    """A pattern for the files of the same split."""
    shard = _SHARD_NAME.fullmatch(file.stem)
    return str(file.parent / (f"{shard[1]}-*.parquet" if shard else "*.parquet"))


def _name_of(files: Sequence[Path]) -> str:
    """What names these files of a split: the only one, their folder, or a pattern."""
    folder = common_folder(files)
    if len(files) == 1 or any(file.parent != folder for file in files):
        return str(files[0] if len(files) == 1 else folder)
    if not _split_word(Path(files[0].name)):
        return str(folder)
    names = [file.name for file in files]
    first = _beginning(names)
    last = _beginning([name[: len(first) - 1 : -1] if first else name[::-1] for name in names])
    return str(folder / f"{first}*{last[::-1]}")


def _beginning(names: Sequence[str]) -> str:
    """The characters that all names begin with."""
    alike = takewhile(lambda characters: len(set(characters)) == 1, zip(*names, strict=False))
    return "".join(characters[0] for characters in alike)


def _several_splits(source: TableSource, splits: Sequence[str]) -> InputError:
    are_folders = all(Path(name).is_dir() for name in splits)
    other = source.source == "datasets" and not are_folders
    return InputError(
        f"the folder holds {len(splits)} splits, whose rows would be mixed",
        where=str(source.path),
        fix=f"give the path of one of them: {', '.join(sorted(splits))}"
        + ", with source parquet" * other
        + "; or each in a source of its own, in a list of sources",
    )
