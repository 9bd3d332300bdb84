"""COCO's detection JSON (instances_*.json), as many tools export it.

    {"images": [{"id", "file_name", "width", "height"}],
     "categories": [{"id", "name", "supercategory"}],
     "annotations": [{"id", "image_id", "category_id", "bbox": [x, y, width, height], "iscrowd"}]}

The name of a category is the expression; boxes are xywh in pixels. A crowd (`iscrowd`: 1) is a
region with any number of objects: its box is no truth, and the other boxes of its category in that
image are not all of them. So `per: label` leaves out that prompt, `per: box` that box, counted as
`crowd`. Images without a box make no prompt. Outlines (`segmentation`) are not read. `category` and
`supercategory` are extra columns; `dataset` is the file's name.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perpo_pipeline.config.sources import CocoSource
from perpo_pipeline.errors import InputError
from perpo_pipeline.json_files import Faults, Row, RowFault, read_json
from perpo_pipeline.prepare.collect import Prepared, Request
from perpo_pipeline.prepare.entries import Entry, ImageFile
from perpo_pipeline.prepare.fields import absent, integer_at, text_at
from perpo_pipeline.prepare.labelled import (
    LabelledBox,
    LabelledImage,
    collect_labelled,
    entries_of,
)

UNREAD = frozenset({"segmentation"})
SUPERCATEGORY = "supercategory"
Id = int | str


@dataclass
class _Found:
    """The boxes of an image, and the labels of its crowds."""

    boxes: list[LabelledBox] = field(default_factory=list)
    crowds: list[str] = field(default_factory=list)


def read_coco(source: CocoSource, request: Request) -> Prepared:
    """Read the file; raises `InputError` with the faults of all records."""
    root = source.image_root or source.path.parent
    faults = Faults(source.path)
    parts = _parts(source.path)
    counts = {"images": len(parts["images"]), "boxes": 0, "images_without_boxes": 0, "crowd": 0}
    entries = _entries(parts, source, root, request, faults, counts)
    prepared = collect_labelled(entries, source, root, request, faults, counts)
    prepared.left_out["crowd"] = prepared.counts["found"].pop("crowd")
    return prepared


def _parts(path: Path) -> dict[str, list[Any]]:
    """The three lists of the file; raises `InputError` if one is missing."""
    found = read_json(path, without=UNREAD)
    names = ("images", "categories", "annotations")
    lists: dict[str, list[Any]] = {
        name: found[name]
        for name in (names if isinstance(found, dict) else ())
        if isinstance(found.get(name), list)
    }
    absent_lists = [name for name in names if name not in lists]
    if absent_lists:
        raise InputError(
            f"not COCO's detection JSON: it has no list {', '.join(absent_lists)}",
            where=str(path),
            fix="give an instances_*.json, or what your tool exports as COCO (detection)",
        )
    return lists


def _entries(
    parts: dict[str, list[Any]],
    source: CocoSource,
    root: Path,
    request: Request,
    faults: Faults,
    counts: dict[str, int],
) -> Iterator[Entry]:
    found = _boxes_by_image(parts, faults)
    for place, image in _by_id(parts["images"], "image", faults).values():
        of_image = found.get(image["id"], _Found())
        counts["boxes"] += len(of_image.boxes)
        counts["images_without_boxes"] += not (of_image.boxes or of_image.crowds)
        counts["crowd"] += _left_out(of_image, source.per)
        with faults.at(place):
            boxes = [
                box
                for box in of_image.boxes
                if source.per == "box" or box.label not in of_image.crowds
            ]
            labelled = LabelledImage(
                ImageFile(root / text_at(image, "file_name")),
                key=str(image["id"]),
                place=place,
                boxes=boxes,
                size=_size(image),
            )
            yield from entries_of(labelled, source.per, source.path.stem, request, faults)


def _left_out(found: _Found, per: str) -> int:
    """How many prompts of an image are left out because of its crowds."""
    return len(found.crowds) if per == "box" else len(set(found.crowds))


def _boxes_by_image(parts: dict[str, list[Any]], faults: Faults) -> dict[Id, _Found]:
    categories = _by_id(parts["categories"], "category", faults)
    images = {record["id"] for record in parts["images"] if _is_record(record)}
    by_image: dict[Id, _Found] = {}
    for number, record in enumerate(parts["annotations"], start=1):
        with faults.at(_place(record, number, "annotation")):
            image, label, extra = _checked(record, images, categories)
            found = by_image.setdefault(image, _Found())
            crowd = record.get("iscrowd")
            if crowd == 1:
                found.crowds.append(label)
                continue
            place = _place(record, number, "annotation")
            key = str(record.get("id", number))
            fault = absent(record, "bbox") if record.get("bbox") is None else ""
            if crowd not in (None, 0):
                fault = f"`iscrowd` is neither 0 nor 1: {crowd!r}"
            found.boxes.append(LabelledBox(label, record.get("bbox"), key, place, extra, fault))
    return by_image


def _checked(
    record: Any, images: set[Id], categories: dict[Id, tuple[str, Row]]
) -> tuple[Id, str, Row]:
    """The image, the label and the extra columns of an annotation; raises `RowFault`."""
    if not isinstance(record, dict):
        raise RowFault("not a JSON object")
    for key in ("image_id", "category_id"):
        if record.get(key) is None:
            raise RowFault(absent(record, key))
        if isinstance(record[key], list | dict):
            raise RowFault(f"`{key}` is neither text nor a whole number: {record[key]!r}")
    if record["image_id"] not in images:
        raise RowFault(f"`image_id` {record['image_id']!r} is no image of the file")
    if record["category_id"] not in categories:
        raise RowFault(f"`category_id` {record['category_id']!r} is no category of the file")
    _, category = categories[record["category_id"]]
    extra = {SUPERCATEGORY: category[SUPERCATEGORY]} if category.get(SUPERCATEGORY) else {}
    return record["image_id"], category["name"], extra


def _by_id(records: list[Any], kind: str, faults: Faults) -> dict[Id, tuple[str, Row]]:
    """(place, record) of each image or category by its id; other records are faults."""
    found: dict[Id, tuple[str, Row]] = {}
    for number, record in enumerate(records, start=1):
        place = _place(record, number, kind)
        with faults.at(place):
            if not _is_record(record):
                raise RowFault("not a JSON object with an `id`")
            if record["id"] in found:
                raise RowFault(f"the id {record['id']!r} occurs twice")
            if kind == "category":
                text_at(record, "name")
            found[record["id"]] = (place, record)
    return found


def _is_record(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("id"), int | str)


def _place(record: Any, number: int, kind: str) -> str:
    """Where a record is: its number in its list, and its id."""
    has_id = _is_record(record)
    return f"{kind} {number} (id {record['id']})" if has_id else f"{kind} {number}"


def _size(image: Row) -> tuple[int, int] | None:
    if image.get("width") is None and image.get("height") is None:
        return None
    return integer_at(image, "width"), integer_at(image, "height")
