"""The files of tables: JSON lines, a JSON list, CSV, TSV, Parquet, folders saved by `datasets`.

    jsonl      one JSON object per line
    json       one JSON list of objects
    csv, tsv   a header, then one row per line; quotes as in RFC 4180; an empty cell is no value
    parquet    a file, a folder of them, or a pattern with *
    datasets   a folder that `save_to_disk` wrote (Arrow files), or a folder of Parquet files

All of them give the same: rows with the file's own names. Images may be inside Parquet and Arrow
files (arrow_files.py); they stay there until they are used. A folder with several splits is
refused, because its rows would be mixed: names such as `train-00000-of-00002` say so, and words
such as `train` and `test` in the names of files and folders (`_splits_of`).
"""

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from perpo_pipeline.config.parquet_files import parquet_files
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
_TRAIN = "train"
_SPLITS = {
    **{word: word for word in ("validation", "val", "valid", "dev", "eval", "testa", "testb")},
    **{_TRAIN: _TRAIN, "training": _TRAIN, "test": "test", "testing": "test"},
}
# Where a word of camel case begins, but for the letter of REFER's testA and testB.
_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])(?![AB](?![A-Za-z]))|(?<=[A-Z])(?=[A-Z][a-z])")
SHOWN = 8  # files of one split, named in a message
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
    by_shard = _grouped(files, map(_shards_of, files))
    if len(by_shard) > 1:
        names = [_name_of(some, _pattern_of(some[0])) for some in by_shard]
        raise _several_splits(source, names)
    splits = _splits_of([file.relative_to(source.folder) for file in files])
    if splits:
        named = [file for file, split in zip(files, splits, strict=True) if split]
        groups = _grouped(named, filter(None, splits))
        raise _several_splits(source, [_name_of(some) for some in groups])
    return files


def _grouped(files: Sequence[Path], keys: Iterable[str]) -> list[list[Path]]:
    groups: dict[str, list[Path]] = {}
    for file, key in zip(files, keys, strict=True):
        groups.setdefault(key, []).append(file)
    return list(groups.values())


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


def _splits_of(places: Sequence[Path]) -> list[str]:
    """The split of each file ("" for none that its name says), or nothing if they are of one split.

    `places` are paths below the folder of the source. A name says a split by the whole of it, or by
    its first or its last word; words end at `_`, `-`, `.`, digits and where camel case goes on.
    Such a word can be there by accident (`driving_test`, `dev-tools`), so names of the same place
    are compared: whole names, and whole names of folders where a file has none (`train.parquet`,
    `test/a.parquet`); the names of the files; the names of their folders, or else of the files.
    `_are_splits` says when those that are not whole count.
    """
    names = [_mark_of(_without_shard(place)) for place in places]
    folders = [_mark_of_folder(place) for place in places]
    whole = [
        next((mark for mark in marks if mark and mark.is_whole), None)
        for marks in zip(names, folders, strict=True)
    ]
    outer = [folder or name for name, folder in zip(names, folders, strict=True)]
    for marks in (whole, names, outer):
        several = len({mark.split for mark in marks if mark}) > 1
        if several and (marks is whole or _are_splits(marks)):
            return [mark.split if mark else "" for mark in marks]
    return []


@dataclass(frozen=True)
class _Mark:
    """The split that a name says, in its first word, its last word, or both."""

    split: str
    is_first: bool
    is_last: bool
    others: tuple[str, ...]  # the other words

    @property
    def is_whole(self) -> bool:
        return self.is_first and self.is_last and not self.others


def _are_splits(marks: Sequence[_Mark | None]) -> bool:
    """Whether words for different splits are no accident.

    They are none where the other words are the same (`train_boxes`, `test_boxes`); nor where every
    file has such a word, one of them is `train`, and another has its place (`train_coco`,
    `test_flickr`): then rows of a test would be trained on.
    """
    said = [mark for mark in marks if mark]
    alike: dict[tuple[str, ...], set[str]] = {}
    for mark in said:
        alike.setdefault(mark.others, set()).add(mark.split)
    first = {mark.split for mark in said if mark.is_first}
    last = {mark.split for mark in said if mark.is_last}
    has_train = any(_TRAIN in splits and len(splits) > 1 for splits in (first, last))
    is_each_named = len(said) == len(marks)
    return any(len(splits) > 1 for splits in alike.values()) or (is_each_named and has_train)


def _mark_of(name: str) -> _Mark | None:
    words = [word.lower() for word in re.findall(r"[^\W\d_]+", _CAMEL_CASE.sub(" ", name))]
    if not words:
        return None
    first, last = _SPLITS.get(words[0]), _SPLITS.get(words[-1])
    found = dict.fromkeys(split for split in (first, last) if split)
    others = words[bool(first) : len(words) - bool(last)]
    return _Mark(" ".join(found), bool(first), bool(last), tuple(others)) if found else None


def _mark_of_folder(place: Path) -> _Mark | None:
    """The mark of the nearest folder whose whole name says a split, or else whose name does."""
    marks = [mark for folder in place.parents if (mark := _mark_of(folder.name))]
    return next((mark for mark in marks if mark.is_whole), marks[0] if marks else None)


def _without_shard(file: Path) -> str:
    shard = _SHARD_NAME.fullmatch(file.stem)
    return shard[1] if shard else file.stem


def _pattern_of(file: Path) -> str:
    """A pattern for the files of the same split."""
    shard = _SHARD_NAME.fullmatch(file.stem)
    return str(file.parent / (f"{shard[1]}-*.parquet" if shard else "*.parquet"))


def _name_of(files: Sequence[Path], pattern: str = "") -> str:
    """What names these files and no other: `pattern`, the only one, their folder, another pattern.

    The files themselves where nothing does.
    """
    folder = common_folder(files)
    own = [pattern] * bool(pattern) + [str(file) for file in files if len(files) == 1]
    for name in (*own, str(folder), str(folder / _pattern_for(files))):
        if sorted(parquet_files(Path(name))) == sorted(files):
            return name
    more = [f"{len(files) - SHOWN} more"] * (len(files) > SHOWN)
    return " and ".join([*map(str, files[:SHOWN]), *more])


def _pattern_for(files: Sequence[Path]) -> Path:
    """A pattern for files whose paths differ in some parts, * in the place of what differs."""
    folder, parts = common_folder(files), []
    for names in zip(*(file.relative_to(folder).parts for file in files), strict=False):
        first = _beginning(names)
        rests = [name[len(first) :][::-1] for name in names]
        is_same = len(set(names)) == 1
        parts.append(first if is_same else f"{first}*{_beginning(rests)[::-1]}")
    return Path(*parts)


def _beginning(names: Sequence[str]) -> str:
    """The characters that all names begin with."""
    alike = takewhile(lambda characters: len(set(characters)) == 1, zip(*names, strict=False))
    return "".join(characters[0] for characters in alike)


def _several_splits(source: TableSource, splits: Sequence[str]) -> InputError:
    are_folders = all(os.path.isdir(name) for name in splits)
    other = source.source == "datasets" and not are_folders
    return InputError(
        f"the folder holds {len(splits)} splits, whose rows would be mixed",
        where=str(source.path),
        fix=f"give the path of one of them: {', '.join(sorted(splits))}"
        + ", with source parquet" * other
        + "; or each in a source of its own, in a list of sources",
    )
