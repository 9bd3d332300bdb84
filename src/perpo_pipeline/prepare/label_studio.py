"""Label Studio's JSON export with RectangleLabels (not JSON-MIN).

    [{"id": 1, "data": {"image": "/data/upload/1/0b1c2d3e-photo.jpg"},
      "annotations": [{"was_cancelled": false, "ground_truth": false, "result": [
        {"type": "rectanglelabels", "original_width": 640, "original_height": 480,
         "image_rotation": 0, "value": {"x": 10.0, "y": 20.0, "width": 30.0, "height": 40.0,
                                        "rotation": 0, "rectanglelabels": ["car"]}}]}]}]

x, y, width and height are per cent of the original image, which must have that size. A rectangle or
image that is turned is a bad row: its box would not be the object's. Of several annotations of a
task the one marked as ground truth is read; without a mark the task is a bad row. Cancelled ones
are skipped. Choices about the whole image and other keys of `data` are extra columns, as is the
label (`category`). Other kinds of results are counted and not read. Nothing is downloaded: an image
is looked for under `image_root` by the path in a local-files address, else by its name, also
without the eight characters that an upload puts before it. `dataset` is the file's name.
"""

import os.path
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from perpo_pipeline.answers.truth import are_numbers
from perpo_pipeline.config.sources import LabelStudioSource
from perpo_pipeline.json_files import Faults, Row, RowFault, read_json_list
from perpo_pipeline.prepare.collect import Prepared, Request
from perpo_pipeline.prepare.entries import Entry, ImageFile
from perpo_pipeline.prepare.fields import absent, integer_at, text_at, text_fault
from perpo_pipeline.prepare.labelled import (
    LabelledBox,
    LabelledImage,
    collect_labelled,
    entries_of,
)

RECTANGLE, CHOICES = "rectanglelabels", "choices"
_UPLOAD = re.compile(r"[0-9a-f]{8}-")
_LOCAL = "/data/local-files/"


def read_label_studio(source: LabelStudioSource, request: Request) -> Prepared:
    """Read the export; raises `InputError` with the faults of all tasks."""
    root = source.image_root or source.path.parent
    faults = Faults(source.path)
    counts: Counter[str] = Counter()
    entries = _entries(source, root, request, faults, counts)
    prepared = collect_labelled(entries, source, root, request, faults, counts, "tasks")
    others = [f"{count} {kind[6:]}" for kind, count in counts.items() if kind.startswith("other ")]
    if others:
        prepared.notes["other_results"] = f"results that are no rectangles: {', '.join(others)}"
    return prepared


def _entries(
    source: LabelStudioSource, root: Path, request: Request, faults: Faults, counts: Counter[str]
) -> Iterator[Entry]:
    for number, task in read_json_list(source.path, faults):
        place = f"record {number}"
        with faults.at(place):
            counts["tasks"] += 1
            results = _results(task)
            counts.update(f"other {kind}" for kind in map(_other_kind, results) if kind)
            key = str(task.get("id", number))
            boxes = list(_boxes(results, _extra(task, results, source.image_key), key, place))
            if not boxes:
                counts["tasks_without_boxes"] += 1
                continue
            counts["boxes"] += len(boxes)
            image = _image(task, source.image_key, root)
            found = LabelledImage(image, key, place, boxes, _size(results))
            yield from entries_of(found, source.per, source.path.stem, request, faults)


def _results(task: Row) -> list[Row]:
    """The results of the one annotation that counts."""
    annotations = task.get("annotations")
    if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
        raise RowFault("`annotations` is no list of annotations; export the project as JSON")
    left = [one for one in annotations if not one.get("was_cancelled")]
    marked = [one for one in left if one.get("ground_truth")]
    chosen = marked if len(left) > 1 else left
    if len(left) > 1 and len(marked) != 1:
        raise RowFault(
            f"{len(left)} annotations, of which {len(marked)} are marked as ground truth; mark one"
        )
    results = chosen[0].get("result") if chosen else []
    if not isinstance(results, list) or not all(isinstance(one, dict) for one in results):
        raise RowFault("`result` is no list of results")
    return results


def _is_rectangle(result: Row) -> bool:
    return result.get("type") == RECTANGLE


def _is_about_the_image(result: Row) -> bool:
    """Whether a result is a choice about the whole image, not about a region."""
    value = result.get("value")
    return result.get("type") == CHOICES and isinstance(value, dict) and "x" not in value


def _other_kind(result: Row) -> str | None:
    """The type of a result that is not read, None for one that is."""
    is_read = _is_rectangle(result) or _is_about_the_image(result)
    return None if is_read else str(result.get("type"))


def _extra(task: Row, results: Sequence[Row], image_key: str) -> Row:
    data = task.get("data")
    extra = {k: v for k, v in data.items() if k != image_key} if isinstance(data, dict) else {}
    for result in filter(_is_about_the_image, results):
        chosen = result["value"].get(CHOICES)
        is_one = isinstance(chosen, list) and len(chosen) == 1
        extra[str(result.get("from_name"))] = chosen[0] if is_one else chosen
    return extra


def _boxes(results: Sequence[Row], extra: Row, key: str, place: str) -> Iterator[LabelledBox]:
    for number, result in enumerate(filter(_is_rectangle, results), start=1):
        value = result.get("value")
        if not isinstance(value, dict):
            raise RowFault(f"rectangle {number} has no `value`")
        if value.get("rotation") or result.get("image_rotation"):
            raise RowFault(f"rectangle {number} or its image is turned: its sides are not upright")
        labels = value.get(RECTANGLE)
        if not isinstance(labels, list) or not labels:
            raise RowFault(f"rectangle {number} has no label")
        box = _in_pixels(value, integer_at(result, "original_width"), _height(result))
        for label in labels:
            if not isinstance(label, str) or not label.strip() or text_fault("label", label):
                raise RowFault(f"the label of rectangle {number} is not text: {label!r}")
            where, name = f"{place}, rectangle {number}", f"{key}/{number}"
            name = f"{name}/{label}" if len(labels) > 1 else name
            yield LabelledBox(label, box, name, where, extra)


def _height(result: Row) -> int:
    return integer_at(result, "original_height")


def _in_pixels(value: Row, width: int, height: int) -> list[Any]:
    """x, y, width, height in pixels, as they are if they are no numbers."""
    box: list[Any] = [value.get(name) for name in ("x", "y", "width", "height")]
    sides = [width, height, width, height]
    if not are_numbers(box + sides, 8):
        return box
    box = [float(part) for part in box]
    return [part * side / 100 for part, side in zip(box, sides, strict=True)]


def _size(results: Sequence[Row]) -> tuple[int, int]:
    first = next(filter(_is_rectangle, results))
    return integer_at(first, "original_width"), _height(first)


def _image(task: Row, key: str, root: Path) -> ImageFile:
    """The image's file under `root`; if there is none, the first place that was looked at."""
    data = task.get("data")
    if not isinstance(data, dict):
        raise RowFault(absent(task, "data"))
    if key not in data:
        raise RowFault(f"`data` has no {key!r}, but {', '.join(map(repr, data))} (image_key)")
    address = text_at(data, key)
    places = [root / name for name in _local_names(address)]
    found = next((place for place in places if os.path.isfile(place)), places[0])
    return ImageFile(found, "" if str(found).endswith(address) else f"from {address[:120]}")


def _local_names(address: str) -> list[str]:
    """The paths at which the image of an address may be, from `image_root`; raises `RowFault`."""
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise RowFault(f"the image's address {address[:120]!r} is none: {error}") from None
    if parts.scheme == "data":
        raise RowFault(
            f"the image is in the task itself ({address[:60]!r}); save it as a file under "
            "`image_root`, and write its name there"
        )
    if parts.path.endswith(_LOCAL) and (given := parse_qs(parts.query).get("d")):
        return [given[0], PurePosixPath(given[0]).name]
    if not (parts.scheme or address.startswith("/data/")):
        return [address]
    name = PurePosixPath(unquote(parts.path)).name
    return [name, name[9:]] if _UPLOAD.match(name) else [name]
