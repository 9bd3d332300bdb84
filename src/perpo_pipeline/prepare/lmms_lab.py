"""The Parquet files of lmms-lab/RefCOCO (RefCOCOplus, RefCOCOg), with the images inside.

    question_id, image {bytes, path}, question, answer [expression, ...], segmentation,
    bbox [x, y, w, h], file_name

One row is one expression of `answer`; `question` is not used. Boxes are xywh in pixels of the full
image, and become xyxy. Files are named SPLIT-00000-of-00002-....parquet; a row's `dataset` is
DATASET_SPLIT. The split `val` holds the official val and Google's val together, so its metrics
cannot be compared with papers; the run prints that.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from perpo_pipeline.answers.truth import xyxy_from_xywh
from perpo_pipeline.config.sources import LmmsLabSource
from perpo_pipeline.errors import InputError
from perpo_pipeline.json_files import Faults, RowFault, missing_file
from perpo_pipeline.prepare.collect import Prepared, Request, collect
from perpo_pipeline.prepare.entries import Entry
from perpo_pipeline.prepare.fields import text_at
from perpo_pipeline.store.atomic import file_sha256

_SHARD = re.compile(r"(.+?)-[0-9]{5}-of-[0-9]{5}.*")
_FIX = "give a whole Parquet file of lmms-lab/RefCOCO, a folder of them or a pattern"
_VAL_NOTE = (
    "lmms-lab's val holds the official val and Google's val together: its metrics cannot be "
    "compared with papers (source: refer has the official val)"
)


def read_lmms_lab(source: LmmsLabSource, request: Request) -> Prepared:
    """Read the files; image bytes are read only when used. `source_row` is FILE/ROW/ANSWER.

    Raises `ConfigError` if no file is found, `InputError` with the faults of all rows.
    """
    files = source.parquet_files()
    if not files or not all(file.is_file() for file in files):
        raise missing_file(source.path)
    faults = Faults(source.path)
    counts: dict[str, Counter[str]] = {}
    base = files[0].parent if len(files) == 1 else _common_folder(files)
    entries: list[Entry] = []
    images = _Images()
    for file in files:
        name = str(file.relative_to(base))
        dataset = f"{source.dataset}_{_split_of(file)}"
        counter = counts.setdefault(dataset, Counter())
        entries += _entries(_Shard(file, name, images), dataset, counter, faults, request)
    # One thread reads the rows in order, because only one row group is kept in memory.
    prepared = collect(entries, faults, request, per_dataset=source.per_dataset, threads=1)
    prepared.facts.update(
        file_sha256={str(file.relative_to(base)): file_sha256(file) for file in files},
        instruction=request.instruction,
    )
    prepared.counts["found"] = {name: dict(counter) for name, counter in counts.items()}
    if any(name.endswith("_val") for name in counts):
        prepared.notes["val"] = _VAL_NOTE
    return prepared


def _common_folder(files: list[Path]) -> Path:
    return next(p for p in files[0].parents if all(file.is_relative_to(p) for file in files))


def _split_of(file: Path) -> str:
    shard = _SHARD.fullmatch(file.stem)
    return shard[1] if shard else file.stem


class _Images:
    """The images of one row group of one file, which is all that is in memory at a time."""

    def __init__(self) -> None:
        self.held: tuple[Path, int] | None = None
        self.column: Any = None

    def at(self, path: Path, group: int, row: int) -> Any:
        """The image of a row of a row group, as {bytes, path}."""
        if self.held != (path, group):
            self.column = None
            with pq.ParquetFile(path) as file:
                self.column = file.read_row_group(group, columns=["image"])["image"]
            self.held = (path, group)
        return self.column[row].as_py()


@dataclass(frozen=True)
class _Shard:
    """One file, with its name for keys and faults."""

    path: Path
    name: str
    images: _Images


@dataclass(frozen=True)
class _ShardImage:
    """An image inside a shard."""

    shard: _Shard
    group: int
    row: int
    number: int

    @property
    def path(self) -> Path | None:
        return None

    def read(self) -> bytes:
        """Its bytes; raises `InputError`."""
        try:
            image = self.shard.images.at(self.shard.path, self.group, self.row)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"the image cannot be read: {error}", where=str(self)) from error
        data = image.get("bytes") if isinstance(image, dict) else None
        if not isinstance(data, bytes):
            raise InputError("the row holds no image bytes", where=str(self))
        return data

    def __str__(self) -> str:
        return f"in {self.shard.name}, row {self.number}"


def _entries(
    shard: _Shard, dataset: str, counter: Counter[str], faults: Faults, request: Request
) -> Iterator[Entry]:
    for image, record in _rows(shard):
        place = f"{shard.name}, row {image.number}"
        with faults.at(place):
            answers = record["answer"]
            if not isinstance(answers, list) or not answers:
                raise RowFault("`answer` is not a list of expressions")
            counter.update(refs=1, expressions=len(answers))
            box = xyxy_from_xywh(record["bbox"])
            for index, answer in enumerate(answers):
                yield Entry(
                    place=f"{place}, answer {index + 1}",
                    dataset=dataset,
                    source_row=f"{shard.name}/{image.number}/{index}",
                    task="grounding",
                    image=image,
                    prompt=request.question(text_at({"answer": answer}, "answer")),
                    gt_box=box,
                )


def _rows(shard: _Shard) -> Iterator[tuple[_ShardImage, dict[str, Any]]]:
    """Each row without its image; raises `InputError` if the file has another layout."""
    try:
        with pq.ParquetFile(shard.path) as file:
            missing = {"image", "answer", "bbox"} - set(file.schema_arrow.names)
            if missing:
                raise InputError(
                    f"the file has no column {', '.join(sorted(missing))}",
                    where=str(shard.path),
                    fix=_FIX,
                )
            number = 0
            for group in range(file.num_row_groups):
                columns = file.read_row_group(group, columns=["answer", "bbox"]).to_pylist()
                for row, record in enumerate(columns):
                    number += 1
                    yield _ShardImage(shard, group, row, number), record
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"cannot be read as Parquet: {error}", where=str(shard.path), fix=_FIX
        ) from error
