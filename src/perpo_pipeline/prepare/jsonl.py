"""perpo's own layout: JSON lines of image, prompt and truth.

    {"image": "photos/1.jpg", "prompt": "Where is ...?", "task": "grounding",
     "gt_box": [x1, y1, x2, y2]}
    {"image": "pages/7.png", "prompt": "What does this page say?", "task": "ocr", "gt_text": "..."}

Boxes are xyxy in pixels of the upright image. Optional keys: `id` (the row's own name; default: its
line number), `dataset`, `expression` (instead of `prompt`: the run's box format makes the question
from it; LLaVA's question is the paper's), `gt_boxes` (several true boxes) and `gt_polygon` (x1, y1,
x2, y2, x3, y3, ..., three points or more), with `gt_box` or instead of it. `"gt_boxes": []` says
that what is asked for is not in the image; such a row has no other box. `gt_point` is a true point
x, y, where `prompt` asks for one. `image` is relative to the
file's folder, or to `image_root`.
"""

from collections.abc import Iterator
from pathlib import Path

from perpo_pipeline.config.sources import JsonlSource
from perpo_pipeline.json_files import Faults, Row, RowFault, read_json_lines
from perpo_pipeline.prepare.collect import Prepared, Request, collect
from perpo_pipeline.prepare.entries import Entry, ImageFile
from perpo_pipeline.prepare.fields import absent, text_fault
from perpo_pipeline.store.atomic import file_sha256

BOXES = ("gt_box", "gt_boxes", "gt_polygon", "gt_point")
KEYS = {"image", "prompt", "expression", "task", "gt_text", "id", "dataset", *BOXES}
TASKS = ("grounding", "ocr", "vqa")
ADDRESSES = ("http://", "https://", "data:", "file://")


def read_jsonl(source: JsonlSource, request: Request) -> Prepared:
    """Read and check every row.

    Raises `InputError` that lists the faults of all rows, each by its line, `ConfigError` for a
    missing file.
    """
    root = source.image_root or source.path.parent
    faults = Faults(source.path)
    records = list(read_json_lines(source.path, faults))
    entries = _entries(records, faults, source, root, request)
    prepared = collect(
        entries, faults, request, embed=source.embed_images, per_dataset=source.per_dataset
    )
    has_expressions = any(record.get("expression") for _, record in records)
    prepared.facts.update(
        file_sha256=file_sha256(source.path),
        image_root=str(root.resolve()),
        instruction=request.instruction if has_expressions else None,
    )
    return prepared


def _entries(
    records: list[tuple[int, Row]],
    faults: Faults,
    source: JsonlSource,
    root: Path,
    request: Request,
) -> Iterator[Entry]:
    for line, record in records:
        place = f"line {line}"
        with faults.at(place):
            _check_keys(record, source)
            yield Entry(
                place=place,
                dataset=str(record.get("dataset", source.path.stem)),
                source_row=str(record.get("id", line)),
                task=str(record.get("task", source.task)),
                image=ImageFile(root / record["image"]),
                prompt=record.get("prompt") or request.question(record["expression"]),
                gt_text=record.get("gt_text"),
                **{name: record.get(name) for name in BOXES},
            )


def _check_keys(record: Row, source: JsonlSource) -> None:
    """Raise `RowFault` for the first fault of a row, apart from its image and its boxes."""
    unknown = sorted(set(record) - KEYS)
    if unknown:
        raise RowFault(f"unknown keys {unknown}; known: {sorted(KEYS)}")
    for key in ("image", "prompt", "expression", "gt_text"):
        if record.get(key) is not None and not isinstance(record[key], str):
            raise RowFault(f"`{key}` is not text: {record[key]!r}")
    for key in ("id", "dataset"):
        if key in record and record[key] is None:
            raise RowFault(f"`{key}` is null; give a value or remove the key")
        if not isinstance(record.get(key, ""), str | int) or isinstance(record.get(key), bool):
            raise RowFault(f"`{key}` is neither text nor a whole number: {record[key]!r}")
    for key in ("image", "prompt", "expression", "gt_text", "id", "dataset"):
        if fault := text_fault(key, str(record.get(key, ""))):
            raise RowFault(fault)
    if not record.get("image"):
        raise RowFault(absent(record, "image"))
    if record["image"].startswith(ADDRESSES):
        raise RowFault(f"`image` is no path: {record['image'][:60]!r}; nothing is downloaded")
    if bool(record.get("prompt")) == bool(record.get("expression")):
        raise RowFault("give either `prompt` or `expression`")
    task = record.get("task", source.task)
    if task not in TASKS:
        what = absent(record, "task") if task is None else f"`task` is {task!r}"
        raise RowFault(f"{what}; give one of {list(TASKS)} in the row or in the configuration")
    if task != "grounding" and record.get("gt_text") is None:
        raise RowFault(f"{absent(record, 'gt_text')} (task {task})")
    if task == "grounding" and all(record.get(name) is None for name in BOXES):
        raise RowFault(
            f"{absent(record, 'gt_box')} (task grounding; or `gt_boxes`, or `gt_polygon`, or "
            "`gt_point`)"
        )
    if record.get("expression") and all(record.get(name) is None for name in BOXES[:3]):
        raise RowFault(
            "a `gt_point` needs a `prompt`: the question for an expression asks for a box"
        )
