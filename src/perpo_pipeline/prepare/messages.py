"""Files of chats: OpenAI's and TRL's `messages`, ShareGPT's `conversations`, ms-swift's grounding.

chats.py has the layouts of a row, chat_objects.py ms-swift's `objects`. The truth is the last turn
of the assistant: a text, or boxes as `box_format` and `box_frame` of the source say. Where the chat
ends with the user, it is in the row's `gt_box`, `gt_boxes`, `gt_polygon`, `gt_point` or `gt_text`
(as `perpo export --to grpo` writes them). Other keys are kept in `extra`.

Boxes in texts are rounded, so what reaches beyond the image by one written unit is cut off.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from perpo_pipeline.answers.boxes import Box, get_box_format, parse_boxes
from perpo_pipeline.answers.formats import BOX_FORMATS, describe_box_format
from perpo_pipeline.config.by_task import TASKS
from perpo_pipeline.config.messages import MessagesSource
from perpo_pipeline.config.sources import TableSource
from perpo_pipeline.errors import InputError
from perpo_pipeline.json_files import Faults, Row, RowFault, read_json_rows, refuse_compressed
from perpo_pipeline.prepare.chat_images import chat_image
from perpo_pipeline.prepare.chat_objects import BBOX, Objects, read_objects
from perpo_pipeline.prepare.chats import Chat, Layout, read_chat
from perpo_pipeline.prepare.collect import MOST_THREADS, Prepared, Request, collect
from perpo_pipeline.prepare.entries import Entry, ImageData
from perpo_pipeline.prepare.fields import OtherColumns, absent, extra_text, text_fault
from perpo_pipeline.prepare.several_images import whole_number
from perpo_pipeline.prepare.table_files import Record, open_table
from perpo_pipeline.store.atomic import file_sha256
from perpo_pipeline.store.schemas import PROMPTS
from perpo_pipeline.vlm.image_place import IMAGE_PLACE, USER

GROUNDING, BOX_IMAGE = "grounding", "box_image"
TRUTHS = PROMPTS.role("truth")
IMAGE_COLUMNS = {"images": True, "image": True}  # they may hold lists


def read_messages(source: MessagesSource, request: Request) -> Prepared:
    """Read and check every chat.

    Raises `InputError` that lists the faults of all rows, each by its line, `ConfigError` for a
    missing file.
    """
    faults = Faults(source.path)
    rows = _Rows(source, faults)
    records, files, has_images = _open(source, faults)
    prepared = collect(
        rows.entries(records),
        faults,
        request,
        embed=source.embed_images,
        per_dataset=source.per_dataset,
        threads=1 if has_images else MOST_THREADS,
    )
    rows.check_columns(request.split)
    hashes = {name: file_sha256(file) for name, file in files.items()}
    prepared.facts.update(file_sha256=hashes, image_root=str(rows.root.resolve()))
    if source.box_format is not None and source.box_format not in BOX_FORMATS:
        prepared.facts["own_box_format"] = describe_box_format(source.box_format)
    prepared.notes.update(rows.others.notes())
    return prepared


def _open(
    source: MessagesSource, faults: Faults
) -> tuple[Iterator[Record], Mapping[str, Path], bool]:
    """The rows of a source, its files by their names, and whether images may be inside them."""
    if source.path.is_dir() and not source.is_saved and not source.files():
        raise InputError(
            "the folder holds neither Parquet files nor what `datasets` saved",
            where=str(source.path),
            fix="give the path of the file itself (chats.jsonl, chats.json)",
        )
    refuse_compressed(source.path)
    if source.is_table:
        kind = "datasets" if source.is_saved else "parquet"
        table = open_table(TableSource(source=kind, path=source.path), IMAGE_COLUMNS, faults)
        return table.records, table.files, True
    rows = read_json_rows(source.path, faults)
    records = (Record(place, place.split()[-1], row) for place, row in rows)
    return records, {source.path.name: source.path}, False


@dataclass
class _Rows:
    """Turns the rows of a file into entries."""

    source: MessagesSource
    faults: Faults
    others: OtherColumns = field(default_factory=OtherColumns)
    seen: dict[str, None] = field(default_factory=dict)  # the keys of all rows
    first: tuple[Layout, str] | None = None  # the layout of the first row, and its place

    @property
    def root(self) -> Path:
        return self.source.image_root or self.source.folder

    def entries(self, records: Iterator[Record]) -> Iterator[Entry]:
        """The entries of the good rows; the others become faults."""
        for record in records:
            self.seen.update(dict.fromkeys(record.row))
            with self.faults.at(record.place):
                yield self._entry(record)

    def check_columns(self, split: str) -> None:
        """Raise `InputError` if the settings name columns that no row has."""
        named = self.source.columns.items()
        if absent_columns := [
            f"{its!r} (columns.{ours})" for ours, its in named if its not in self.seen
        ]:
            raise InputError(
                f"there is no column {', '.join(absent_columns)}; the file has "
                + ", ".join(map(repr, self.seen)),
                where=str(self.source.path),
                fix=f"correct prepare.{split}.columns (ours: theirs)",
            )

    def _entry(self, record: Record) -> Entry:
        row = record.row
        chat = read_chat(row)
        self._check_layout(chat.layout, record.place)
        objects = None
        if row.get("objects") is not None:
            objects = read_objects(chat.turns, row["objects"])
            chat = replace(chat, turns=objects.turns)
        task = self._task(row, objects)
        truth = self._truth(chat, row, objects, task)
        question = _question(chat)
        images = [chat_image(value, self.root) for value in chat.images]
        return Entry(
            place=record.place,
            dataset=self._name(row, "dataset", self._dataset),
            source_row=self._name(row, "id", record.number),
            task=task,
            extra=self._extra(row, chat, objects),
            **_asked(question, images, self._box_image(row, objects, len(images))),
            **truth,
        )

    def _check_layout(self, layout: Layout, place: str) -> None:
        if self.first is None:
            self.first = (layout, place)
        first, at = self.first
        if layout != first:
            raise RowFault(
                f"the row has `{layout}`, but {at} has `{first}`: give each its own file"
            )

    def _value(self, row: Row, name: Any) -> Any:
        return row.get(self.source.columns.get(name, name))

    def _name(self, row: Row, name: str, default: str) -> str:
        found = self._value(row, name)
        if not isinstance(found, str | int | type(None)) or isinstance(found, bool):
            raise RowFault(f"`{name}` is neither text nor a whole number: {found!r}")
        if fault := text_fault(name, str(found)):
            raise RowFault(fault)
        return default if found is None or found == "" else str(found)

    def _task(self, row: Row, objects: Objects | None) -> str:
        grounded = objects is not None and objects.are_there
        task = self._value(row, "task") or (GROUNDING if grounded else self.source.task)
        if task not in TASKS:
            what = absent(row, "task") if task is None else f"`task` is {task!r}"
            raise RowFault(f"{what}; give one of {list(TASKS)} in the row or in the configuration")
        if grounded and task != GROUNDING:
            raise RowFault(f"{BBOX} is in the answer, but the task is {task}")
        return str(task)

    def _box_image(self, row: Row, objects: Objects | None, images: int) -> int:
        """The image that boxes refer to: the one that the row names, else of the boxes of `objects`
        the first, else the last."""
        given = whole_number(row.get(BOX_IMAGE))
        if given is not None and (not isinstance(given, int) or isinstance(given, bool)):
            raise RowFault(f"`{BOX_IMAGE}` is no place of an image, from 0: {given!r}")
        named = None if objects is None else objects.image
        if None not in (given, named) and given != named:
            raise RowFault(
                f"`{BOX_IMAGE}` is {given}, but the boxes are of image {named} "
                "(`objects.image_id`); keep one"
            )
        usual = 0 if objects is not None and objects.are_there else max(images - 1, 0)
        return next((one for one in (given, named) if one is not None), usual)

    def _truth(self, chat: Chat, row: Row, objects: Objects | None, task: str) -> Row:
        """The truth of a row, as fields of an entry."""
        if not chat.has_answer:
            return _truth_in_columns(row, task)
        answer = chat.turns[-1][1]
        if not answer.strip():
            raise RowFault("the last turn of the assistant is empty")
        if task != GROUNDING:
            return {"gt_text": answer}
        if objects is not None and objects.are_there:
            return _truth_of_objects(objects)
        return self._boxes_in(answer)

    def _boxes_in(self, answer: str) -> Row:
        """The boxes that an answer spells, to be read once the image's size is known."""
        name = self.source.box_format
        if name is None:
            raise RowFault(
                "the task is grounding, and nothing says how the box in the answer is written: set "
                f"box_format (or give `objects`): {answer[:80]!r}"
            )
        rule = get_box_format(name)
        count = sum(1 for _ in rule.pattern.finditer(answer))
        if not count and answer.strip() == rule.no_target:
            return {"gt_boxes": []}
        if not count:
            raise RowFault(f"the answer has no box in the format {name}: {answer[:120]!r}")
        truth = _WrittenBoxes(answer, name, self.source.frame)
        return {"gt_boxes": truth.all_boxes} if count > 1 else {"gt_box": truth.only_box}

    def _extra(self, row: Row, chat: Chat, objects: Objects | None) -> str | None:
        """The other columns of a row."""
        columns = self.source.columns
        named = [columns.get(name, name) for name in ("task", "id", "dataset")]
        used = {*chat.used, BOX_IMAGE, *named, *(["objects"] if objects is not None else [])}
        if not chat.has_answer:
            used |= {*TRUTHS}
        extra = {
            name: value for name, value in row.items() if name not in used and value is not None
        }
        self.others.keep(extra)
        return extra_text(extra)

    @property
    def _dataset(self) -> str:
        path = self.source.path
        is_folder = path.is_dir() or "*" in path.name
        return self.source.folder.resolve().name if is_folder else path.stem


def _truth_in_columns(row: Row, task: str) -> Row:
    """The truth of a chat that ends with the user."""
    truth = {name: row[name] for name in TRUTHS if row.get(name) is not None}
    text = truth.get("gt_text")
    if not truth:
        raise RowFault(
            "the chat has no answer: its last turn is not the assistant's, and no column "
            f"({', '.join(TRUTHS)}) has the truth"
        )
    if not isinstance(text, str | None) or text == "":
        raise RowFault(f"`gt_text` is no text: {text!r}")
    if fault := text_fault("gt_text", text or ""):
        raise RowFault(fault)
    if task != GROUNDING and text is None:
        raise RowFault(f"{absent(row, 'gt_text')} (task {task})")
    if task == GROUNDING and truth.keys() <= {"gt_text"}:
        raise RowFault("the task is grounding, and the truth is a text")
    return truth


def _question(chat: Chat) -> list[tuple[str, str]]:
    """The turns before the answer; the last one is the user's."""
    turns = chat.turns[:-1] if chat.has_answer else chat.turns
    if not turns or turns[-1][0] != USER:
        raise RowFault("there is no question: before the answer comes no turn of the user")
    return turns


def _asked(question: list[tuple[str, str]], images: list[ImageData], box_image: int) -> Row:
    """The images and the turns of a question, as fields of an entry; `collect` checks them."""
    if not images:
        raise RowFault("there is no image")
    if not 0 <= box_image < len(images):
        raise RowFault(f"the boxes are of image {box_image}, and there are {len(images)} (from 0)")
    *history, (_, prompt) = _without_first_places(question, len(images))
    several = {
        "more_images": tuple(one for at, one in enumerate(images) if at != box_image),
        "box_image": box_image,
    }
    return {
        "image": images[box_image],
        "prompt": prompt,
        "history": tuple(history),
        **(several if len(images) > 1 else {}),
    }


def _without_first_places(question: list[tuple[str, str]], images: int) -> list[tuple[str, str]]:
    """The turns without the places of images where all of them come first, before a text: there
    they are by default."""
    first = next(at for at, (role, _) in enumerate(question) if role == USER)
    rest = re.sub(rf"^(?:\s*{IMAGE_PLACE}){{{images}}}\s*", "", question[first][1])
    turns_now = [*question[:first], (USER, rest), *question[first + 1 :]]
    has_more = not rest or any(IMAGE_PLACE in text for _, text in turns_now)
    return question if has_more else turns_now


def _truth_of_objects(objects: Objects) -> Row:
    if objects.boxes and objects.points:
        raise RowFault("`objects.bbox` has boxes and points; give them in rows of their own")
    if len(objects.points) > 1:
        raise RowFault("`objects.bbox` has several points; one is read")
    if objects.points:
        (x, y), norm = objects.points[0], objects.is_norm
        return {"gt_point": (lambda w, h: [x * w, y * h]) if norm else [x, y]}
    if len(objects.boxes) == 1:
        only = objects.boxes[0]
        return {"gt_box": (lambda w, h: _scaled(only, w, h)) if objects.is_norm else only}
    boxes = objects.boxes
    if objects.is_norm:
        return {"gt_boxes": lambda w, h: [_scaled(box, w, h) for box in boxes]}
    return {"gt_boxes": boxes}


def _scaled(box: list[float], width: int, height: int) -> list[float]:
    return [value * (width, height)[i % 2] for i, value in enumerate(box)]


@dataclass(frozen=True)
class _WrittenBoxes:
    """The boxes of a text, in pixels when the image's size is known."""

    answer: str
    box_format: str
    frame: str

    def only_box(self, width: int, height: int) -> list[float]:
        """The one box."""
        return self.all_boxes(width, height)[0]

    def all_boxes(self, width: int, height: int) -> list[list[float]]:
        """The boxes in their order."""
        size = (width, height)
        boxes = parse_boxes(self.answer, self.box_format, frame=self.frame, image_size=size)
        found = [box for box in boxes if box is not None]
        if len(found) < len(boxes):
            raise RowFault(f"the answer has a box that is on no image: {self.answer[:120]!r}")
        return [self._inside(box, width, height) for box in found]

    def _inside(self, box: Box, width: int, height: int) -> list[float]:
        """The box without what rounding put beyond the image."""
        rule = get_box_format(self.box_format)
        written = 10.0**-rule.decimals
        sides = (width, height)
        units = [written * (side / rule.scale if rule.scale else 1.0) for side in sides]
        cut = []
        for i, value in enumerate(box):
            side, unit = float(sides[i % 2]), units[i % 2]
            near = min(max(value, 0.0), side)
            cut.append(near if abs(value - near) <= unit else value)
        return cut
