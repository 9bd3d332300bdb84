"""Rows of a table: image, prompt and truth, in any of the files of table_files.py.

    {"image": "photos/1.jpg", "prompt": "Where is ...?", "task": "grounding",
     "gt_box": [x1, y1, x2, y2]}
    {"image": "pages/7.png", "prompt": "What does this page say?", "task": "ocr", "gt_text": "..."}

Optional fields: `id` (the row's own name; default: its line number), `dataset`, `expression`
(instead of `prompt`: the run's box format makes the question from it; LLaVA's question is the
paper's), `gt_boxes` (several true boxes) and `gt_polygon` (x1, y1, x2, y2, x3, y3, ..., three
points or more), with `gt_box` or instead of it. `"gt_boxes": []` says that what is asked for is not
in the image; such a row has no other box. `gt_point` is a true point x, y, where `prompt` asks for
one. `images` is a list of images in place of `image`, `box_image` the place, from 0, of the one
that the truth refers to (default: the last), `history` the turns before the prompt
(several_images.py). All other columns are kept in `extra` (`fields.extra_text`). `image` is
relative to the file's folder, or to `image_root`; in Parquet and Arrow files it may also be the
image's bytes. The setting `columns` names the columns that hold these fields under other names;
`box` and `unit` say what the numbers of a box are. In files that hold texts alone (CSV, TSV) a box
is a JSON list, or has four columns, and `images` and `history` are JSON lists.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from perpo_pipeline.config.by_task import TASKS
from perpo_pipeline.config.sources import ColumnOf, TableSource, Truth
from perpo_pipeline.errors import InputError
from perpo_pipeline.json_files import Faults, Row, RowFault, parse_json
from perpo_pipeline.prepare.arrow_files import ShardImage
from perpo_pipeline.prepare.collect import MOST_THREADS, Prepared, Request, collect
from perpo_pipeline.prepare.entries import Entry, ImageData, ImageFile
from perpo_pipeline.prepare.fields import OtherColumns, absent, blank_fault, extra_text, text_fault
from perpo_pipeline.prepare.several_images import box_image_in, history_in, images_in
from perpo_pipeline.prepare.table_files import DELIMITERS, Record, open_table
from perpo_pipeline.store.atomic import file_sha256

BOXES: tuple[Truth, ...] = get_args(Truth)
FIELDS: tuple[ColumnOf, ...] = (*get_args(ColumnOf)[:-1], *BOXES)
TEXTS = ("image", "prompt", "expression", "gt_text")
NOT_TEXT = (*BOXES, "images", "box_image", "history")  # JSON in files that hold texts alone


def read_table(source: TableSource, request: Request) -> Prepared:
    """Read and check every row.

    Raises `InputError` that lists the faults of all rows, each by its line, `ConfigError` for a
    missing file.
    """
    faults = Faults(source.path)
    rows = _Rows(source, request, faults)
    table = open_table(source, rows.fields.image_columns, faults)
    if table.columns is not None:
        rows.fields.check(table.columns, source.path, request.split)
    prepared = collect(
        rows.entries(table.records),
        faults,
        request,
        embed=source.embed_images,
        per_dataset=source.per_dataset,
        # One thread reads images inside the files in order: one row group is kept in memory.
        threads=1 if table.has_images else MOST_THREADS,
    )
    if table.columns is None:  # JSON, where each row has its own keys
        rows.fields.check(list(rows.seen), source.path, request.split)
    hashes = {name: file_sha256(file) for name, file in table.files.items()}
    prepared.facts.update(
        file_sha256=hashes if table.has_images else hashes[source.path.name],
        image_root=str(rows.root.resolve()),
        instruction=request.instruction if rows.has_expressions else None,
    )
    prepared.notes.update(rows.others.notes())
    if source.source in DELIMITERS and "" in (table.columns or ()):
        prepared.notes["column_without_name"] = "a column without a name is left out"
    return prepared


@dataclass(frozen=True)
class _Fields:
    """Which columns hold which fields."""

    columns: Mapping[Any, str | list[str] | None]

    @property
    def image_columns(self) -> dict[str, bool]:
        """The columns that hold images, and whether they may hold lists of them."""
        fields = {"image": False, "images": True}
        return {column: fields[field] for field in fields for column in self.holding(field)}

    def holding(self, field: str) -> list[str]:
        """The columns that hold a field."""
        column = self.columns.get(field, field)
        return column if isinstance(column, list) else [] if column is None else [column]

    def named(self, field: str) -> str:
        """A field, for messages, with the column that holds it if that has another name."""
        columns = self.holding(field)
        if columns == [field]:
            return f"`{field}`"
        return f"`{field}` (column {', '.join(columns)})" if columns else f"`{field}`"

    def check(self, columns: Sequence[str], path: Path, split: str) -> None:
        """Raise `InputError` if the settings name columns that the file does not have."""
        absent_columns = [
            f"{column!r} (columns.{field})"
            for field in self.columns
            for column in self.holding(field)
            if column not in columns
        ]
        if absent_columns:
            raise InputError(
                f"there is no column {', '.join(absent_columns)}; the file has "
                + ", ".join(map(repr, columns)),
                where=str(path),
                fix=f"correct prepare.{split}.columns (ours: theirs)",
            )

    def take(self, row: Row) -> tuple[Row, Row]:
        """The fields of a row, as far as it has them, and its other columns."""
        taken: Row = {}
        for field in FIELDS:
            columns = self.holding(field)
            if len(columns) > 1 and field == "images":
                taken[field] = _without_last_nulls([row.get(column) for column in columns])
            elif len(columns) > 1:
                taken[field] = _together([row.get(column) for column in columns])
            elif columns and columns[0] in row:
                taken[field] = row[columns[0]]
        used = {column for field in FIELDS for column in self.holding(field)}
        return taken, {name: value for name, value in row.items() if name not in used}


class _Rows:
    """Turns the records of a table into entries."""

    def __init__(self, source: TableSource, request: Request, faults: Faults) -> None:
        self.source, self.request, self.faults = source, request, faults
        self.fields = _Fields(source.columns)
        self.root = source.image_root or source.folder
        self.has_expressions = False
        self.seen: dict[str, None] = {}  # the keys of all rows
        self.others = OtherColumns()

    def entries(self, records: Iterator[Record]) -> Iterator[Entry]:
        """The entries of the good rows; the others become faults."""
        for record in records:
            self.seen.update(dict.fromkeys(record.row))
            row, extra = self.fields.take(record.row)
            self.has_expressions |= bool(row.get("expression"))
            with self.faults.at(record.place):
                self.others.keep(extra)
                if self.source.source not in ("jsonl", "json"):
                    row.update({name: _from_text(row.get(name)) for name in NOT_TEXT})
                _check_row(row, extra, self.fields, self.source.task)
                yield self._entry(record, row, extra_text(extra))

    def _entry(self, record: Record, row: Row, extra: str | None) -> Entry:
        images = [self._image(image) for image in images_in(row)]
        box_image = box_image_in(row, len(images))
        return Entry(
            place=record.place,
            dataset=str(row.get("dataset", self._dataset)),
            source_row=str(row.get("id", record.number)),
            task=str(row.get("task", self.source.task)),
            image=images.pop(box_image or 0),
            prompt=row.get("prompt") or self.request.question(row["expression"]),
            gt_text=row.get("gt_text"),
            **{name: row.get(name) for name in BOXES},
            extra=extra,
            more_images=tuple(images),
            box_image=box_image,
            history=history_in(row),
        )

    def _image(self, found: Any) -> ImageData:
        return ImageFile(self.root / found) if isinstance(found, str) else found

    @property
    def _dataset(self) -> str:
        """The name of the file, or of the folder if there may be several files."""
        path = self.source.path
        is_folder = path.is_dir() or "*" in path.name
        return self.source.folder.resolve().name if is_folder else path.stem


def _without_last_nulls(images: list[Any]) -> list[Any] | None:
    """The images of several columns, of which the last may be empty; None if all are.

    An empty one before another stays and is a fault: without it `box_image` would name another.
    """
    while images and images[-1] is None:
        del images[-1]
    return images or None


def _together(cells: Sequence[Any]) -> list[Any] | None:
    """The numbers of a field in several columns; None if all of them are empty."""
    numbers = [_number(cell) for cell in cells]
    return None if all(number is None for number in numbers) else numbers


def _number(cell: Any) -> Any:
    """The number in a cell of text; any other cell as it is."""
    try:
        return float(cell) if isinstance(cell, str) else cell
    except ValueError:
        return cell


def _from_text(cell: Any) -> Any:
    """The JSON value in a cell of text; any other cell as it is."""
    try:
        return parse_json(cell) if isinstance(cell, str) else cell
    except ValueError:
        return cell


def _check_row(row: Row, extra: Row, fields: _Fields, task: str | None) -> None:
    """Raise `RowFault` for the first fault of a row, apart from its image and its boxes."""
    unknown = sorted(name for name in extra if name.startswith("gt_") and name not in FIELDS)
    if unknown:
        raise RowFault(f"unknown keys {unknown}; known: {sorted(FIELDS)}")
    _check_texts(row, fields)
    task = row.get("task", task)
    if task not in TASKS:
        what = absent(row, "task") if task is None else f"`task` is {task!r}"
        raise RowFault(f"{what}; give one of {list(TASKS)} in the row or in the configuration")
    if task != "grounding" and row.get("gt_text") is None:
        raise RowFault(f"{_absent(row, 'gt_text', fields)} (task {task})")
    if task == "grounding" and all(row.get(name) is None for name in BOXES):
        raise RowFault(
            f"{_absent(row, 'gt_box', fields)} (task grounding; or `gt_boxes`, or `gt_polygon`, or "
            "`gt_point`)"
        )
    if row.get("expression") and all(row.get(name) is None for name in BOXES[:3]):
        raise RowFault(
            "a `gt_point` needs a `prompt`: the question for an expression asks for a box"
        )


def _check_texts(row: Row, fields: _Fields) -> None:
    """The first fault of a row's texts and names."""
    texts = ("prompt", "expression", "gt_text") if _is_image(row) else TEXTS
    for key in texts:
        if row.get(key) is not None and not isinstance(row[key], str):
            raise RowFault(f"{fields.named(key)} is not text: {row[key]!r}")
    for key in ("id", "dataset"):
        if key in row and row[key] is None:
            raise RowFault(f"{fields.named(key)} is null; give a value or remove the key")
        if not isinstance(row.get(key, ""), str | int) or isinstance(row.get(key), bool):
            raise RowFault(f"{fields.named(key)} is neither text nor a whole number: {row[key]!r}")
    for key in (*TEXTS, "id", "dataset"):
        if fault := text_fault(key, str(row.get(key, ""))):
            raise RowFault(fault)
    if fault := blank_fault("expression", row.get("expression") or ""):
        raise RowFault(fault)
    if not row.get("image") and row.get("images") is None:
        raise RowFault(_absent(row, "image", fields))
    if bool(row.get("prompt")) == bool(row.get("expression")):
        raise RowFault("give either `prompt` or `expression`")


def _is_image(row: Row) -> bool:
    """Whether the image is inside the row's file."""
    return isinstance(row.get("image"), ShardImage)


def _absent(row: Row, field: str, fields: _Fields) -> str:
    """The fault of a field without a value, with the name of its column."""
    return absent(row, field).replace(f"`{field}`", fields.named(field))
