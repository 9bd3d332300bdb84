"""Expressions and boxes in the layouts of three model families' own evaluations.

    rec-jsonl   one JSON object per line: image, sent, bbox (xyxy), height, width  Qwen-VL, InternVL
    shikra      one JSON object per line: img_path, expression, bbox (xyxy)        Shikra
    minigpt4    one JSON list: img_id, sents, bbox (xywh), height, width           MiniGPT-4, -v2

Boxes are in pixels of the full image. The image of a minigpt4 record is `<img_id without _k>.jpg`.
rec-jsonl and minigpt4 must give height and width; where they are given, they must be the image's.
Other keys are not read. `dataset` is the file's name.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perpo_pipeline.answers.truth import xyxy_from_xywh
from perpo_pipeline.config.sources import RecSource
from perpo_pipeline.json_files import Faults, Row, RowFault, read_json_lines, read_json_list
from perpo_pipeline.prepare.collect import Prepared, Request, collect
from perpo_pipeline.prepare.entries import Entry, ImageFile
from perpo_pipeline.prepare.fields import absent, integer_at, text_at
from perpo_pipeline.store.atomic import file_sha256

_IMG_ID = re.compile(r"(.+)_[0-9]+")
_MINIGPT4_IMAGE = "without its last _NUMBER, and .jpg"


@dataclass(frozen=True)
class _Layout:
    """The names of a layout's keys; `box` converts its `bbox` to xyxy."""

    read: Callable[[Path, Faults], Iterator[tuple[int, Row]]]
    unit: str
    expression: str
    image: Callable[[Row], str]
    box: Callable[[Any], Any]
    must_have_size: bool
    image_note: str = ""  # how the name of the image's file was built, for faults


def read_rec(source: RecSource, request: Request) -> Prepared:
    """Read one of the three layouts; raises `InputError` with the faults of all records."""
    layout = _LAYOUTS[source.source]
    root = source.image_root or source.path.parent
    faults = Faults(source.path)
    entries = _entries(source, layout, root, faults, request)
    prepared = collect(
        entries, faults, request, embed=source.embed_images, per_dataset=source.per_dataset
    )
    prepared.facts.update(
        file_sha256=file_sha256(source.path),
        image_root=str(root.resolve()),
        instruction=request.instruction,
    )
    return prepared


def _entries(
    source: RecSource, layout: _Layout, root: Path, faults: Faults, request: Request
) -> Iterator[Entry]:
    for number, record in layout.read(source.path, faults):
        place = f"{layout.unit} {number}"
        with faults.at(place):
            if record.get("bbox") is None:
                raise RowFault(absent(record, "bbox"))
            yield Entry(
                place=place,
                dataset=source.path.stem,
                source_row=str(number),
                task="grounding",
                image=ImageFile(root / layout.image(record), layout.image_note),
                prompt=request.question(text_at(record, layout.expression)),
                gt_box=layout.box(record["bbox"]),
                size=_declared_size(record, layout.must_have_size),
            )


def _declared_size(record: Row, must: bool) -> tuple[int, int] | None:
    if not must and record.get("width") is None and record.get("height") is None:
        return None
    return integer_at(record, "width"), integer_at(record, "height")


def _minigpt4_image(record: Row) -> str:
    img_id = text_at(record, "img_id")
    match = _IMG_ID.fullmatch(img_id)
    if match is None:
        raise RowFault(
            f"`img_id` does not end with _ and a number: {img_id!r} "
            f"(the image's file would be `img_id` {_MINIGPT4_IMAGE})"
        )
    return f"{match[1]}.jpg"


_LAYOUTS = {
    "rec-jsonl": _Layout(
        read_json_lines,
        "line",
        "sent",
        lambda record: text_at(record, "image"),
        lambda box: box,
        must_have_size=True,
    ),
    "shikra": _Layout(
        read_json_lines,
        "line",
        "expression",
        lambda record: text_at(record, "img_path"),
        lambda box: box,
        must_have_size=False,
    ),
    "minigpt4": _Layout(
        read_json_list,
        "record",
        "sents",
        _minigpt4_image,
        xyxy_from_xywh,
        must_have_size=True,
        image_note=f"`img_id` {_MINIGPT4_IMAGE}",
    ),
}
