"""Reads completions made elsewhere: JSON lines (or Fox's JSON list) with an answer and its truth.

    {"completion": "[0.1, 0.2, 0.5, 0.9]", "gt_box": [x1, y1, x2, y2], "width": 640, "height": 480}
                                               boxes in pixels of the original image, xyxy
    {"completion": "[]", "gt_boxes": [], "width": 640, "height": 480}
                                               any number of boxes; none: nothing is there
    {"completion": "...", "gt_text": "..."}    pages (ocr) and short answers (vqa)
    [{"image": ..., "question": ..., "label": <true text>, "answer": <completion>}]   Fox, ocr

Optional on a line: `split` and `dataset` (each gets metrics of its own), `id` (a name for the row;
default: its line number), `image` (the image's name: rows that share an image are drawn together
for the intervals), and `resized` ([width, height], for the frame `resized`).
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perpo_pipeline.answers.truth import truth_fault
from perpo_pipeline.errors import InputError
from perpo_pipeline.json_files import Faults, Row, json_lines, parse_json, read_text

KEYS = {
    "grounding": ("completion", "gt_box", "width", "height"),
    "ocr": ("completion", "gt_text"),
    "vqa": ("completion", "gt_text"),
}
"""The keys that each line must have, by task; BOX_LIST may take the place of `gt_box`."""
BOX_LIST = "gt_boxes"
OPTIONAL_KEYS = ("split", "dataset", "id", "image")
TRUTH = ("gt_text", "gt_box", "gt_boxes", "width", "height")
FOX_KEYS = ("image", "question", "label", "answer")
UNNAMED = "unnamed"
INDISTINCT = "indistinct_rows"
"""The count of `PredictionFile.indistinct` in a manifest."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class PredictionFile:
    """The checked rows of a file, in its order, and the number of mended completions.

    `indistinct` counts the rows that are known by their line alone: without an id, and with the
    truth and image of another row.
    A row has prompt_id, split, dataset, task, image_key (None if the line names no image),
    completion and its truth: gt_text, or gt_box (xyxy px) or gt_boxes, width, height, and resized
    (None for other frames).
    """

    rows: list[Row]
    mended: int
    indistinct: int = 0


def read_predictions(path: Path, task: str, *, needs_resized: bool = False) -> PredictionFile:
    """Read completions and their truth for `task`, one of KEYS.

    Each lone surrogate in a completion (half a character, which no table can hold) becomes one
    U+FFFD. Raises `ConfigError` if the file is missing, `InputError` with the faults of all rows,
    each with its line.
    """
    faults = Faults(path)
    rows: list[Row] = []
    mended = 0
    seen: dict[str, str] = {}
    for place, name, raw in _entries(path, task, faults):
        wrong = _faults_of(raw, task, needs_resized)
        for fault in wrong:
            faults.add(place, fault)
        if wrong:
            continue
        row = _row(raw, task, name)
        key = "\x1f".join((row["split"], row["dataset"], row.pop("key")))
        if key in seen:
            faults.add(place, f"the id of {seen[key]} is given again")
        seen.setdefault(key, place)
        completion = mend_text(row["completion"])
        mended += completion != row["completion"]
        rows.append(row | {"completion": completion})
    faults.check()
    if not rows:
        raise InputError(
            "the file holds no predictions", where=str(path), fix="give a file with rows"
        )
    return PredictionFile(rows, mended, _indistinct(rows))


def _indistinct(rows: Sequence[Row]) -> int:
    known = [
        json.dumps([row.get(name) for name in (*OPTIONAL_KEYS[:2], "image_key", *TRUTH)])
        for row in rows
    ]
    times = Counter(known)
    return sum(row["unnamed"] and times[key] > 1 for row, key in zip(rows, known, strict=True))


def mend_text(text: str) -> str:
    """The text with U+FFFD in place of every lone surrogate."""
    return _LONE_SURROGATE.sub("\ufffd", text)


def question_key(*parts: Any) -> str:
    """A key made from a question and its truth: the same in every file with that question."""
    text = json.dumps(parts, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def text_fault(raw: Row, keys: Sequence[str]) -> str | None:
    """What is wrong with a row's texts under `keys` (not completions), or None."""
    for key in keys:
        value = raw.get(key)
        if value is None:
            continue
        if not isinstance(value, str):
            return f"`{key}` is not text: {value!r}"
        if _LONE_SURROGATE.search(value):
            return f"`{key}` holds half a character (a lone surrogate): {value[:60]!r}"
    return None


def _entries(path: Path, task: str, faults: Faults) -> Iterator[tuple[str, str, Row]]:
    """(place, default id, row) of each entry; entries of Fox's list get the names of our keys."""
    text = read_text(path)
    if task == "ocr" and text.lstrip().startswith("["):
        yield from _fox_entries(text, faults)
        return
    for number, raw in json_lines(text, faults.add):
        yield f"line {number}", str(number), raw


def _fox_entries(text: str, faults: Faults) -> Iterator[tuple[str, str, Row]]:
    try:
        entries = parse_json(text)
    except ValueError as error:
        faults.add("the file", f"not JSON: {error}")
        return
    for index, raw in enumerate(entries):
        place = f"entry {index}"
        if not isinstance(raw, dict) or set(raw) != set(FOX_KEYS):
            found = sorted(raw) if isinstance(raw, dict) else type(raw).__name__
            faults.add(place, f"expected the keys {list(FOX_KEYS)}, not {found}")
        elif fault := text_fault(raw, FOX_KEYS[:2]):
            faults.add(place, fault)
        else:
            name = json.dumps([raw["image"], raw["question"]])
            row = {"completion": raw["answer"], "gt_text": raw["label"], "image": raw["image"]}
            yield place, name, row


def _faults_of(raw: Row, task: str, needs_resized: bool) -> list[str]:
    required = [*KEYS[task], *(["resized"] if needs_resized else [])]
    if task == "grounding" and BOX_LIST in raw and "gt_box" not in raw:
        required[required.index("gt_box")] = BOX_LIST
    faults = [f"`{key}` is missing" for key in required if raw.get(key) is None]
    unknown = sorted(set(raw) - {*required, *OPTIONAL_KEYS})
    if "resized" in unknown:
        faults.append("`resized` is only for the frame 'resized' without a size")
        unknown.remove("resized")
    if unknown:
        faults.append(f"unknown keys {unknown}; known: {[*required, *OPTIONAL_KEYS]}")
    if faults:
        return faults
    if not isinstance(raw["completion"], str):
        faults.append(f"`completion` is not text: {raw['completion']!r}")
    if fault := text_fault(raw, ["split", "dataset", "image", "gt_text"]):
        faults.append(fault)
    if fault := _name_fault(raw):
        faults.append(fault)
    if task == "grounding":
        faults += _box_faults(raw, needs_resized)
    return faults


def _name_fault(raw: Row) -> str | None:
    if raw.get("dataset") == "all":
        return "`dataset` is 'all', which means all datasets of a split: choose another name"
    name = raw.get("id")
    if name is not None and (isinstance(name, bool) or not isinstance(name, str | int)):
        return f"`id` is neither text nor a whole number: {name!r}"
    return text_fault({"id": str(name)}, ["id"])


def _box_faults(raw: Row, needs_resized: bool) -> list[str]:
    sizes = {"width": raw["width"], "height": raw["height"]}
    faults = [
        f"`{key}` is not a whole number of pixels above 0: {value!r}"
        for key, value in sizes.items()
        if not _is_size(value)
    ]
    resized = raw.get("resized")
    if needs_resized and not (
        isinstance(resized, list) and len(resized) == 2 and all(map(_is_size, resized))
    ):
        faults.append(f"`resized` is not [width, height] in whole pixels: {resized!r}")
    truth = (raw.get("gt_box"), raw.get(BOX_LIST), None)
    if not faults and (fault := truth_fault(*truth, raw["width"], raw["height"])):
        faults.append(fault)
    return faults


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _row(raw: Row, task: str, name: str) -> Row:
    split, dataset = raw.get("split") or "all", raw.get("dataset") or UNNAMED
    key = json.dumps(raw["id"]) if raw.get("id") is not None else f"at {name}"
    box = raw.get("gt_box") and [float(v) for v in raw["gt_box"]]
    truth = {
        "gt_text": raw.get("gt_text"),
        "gt_box": box,
        "width": raw.get("width"),
        "height": raw.get("height"),
    }
    if raw.get(BOX_LIST) is not None:
        truth[BOX_LIST] = [[float(v) for v in one] for one in raw[BOX_LIST]]
    return {
        "key": key,
        "unnamed": raw.get("id") is None and name.isdecimal(),
        "prompt_id": question_key(task, split, dataset, key, *truth.values()),
        "split": split,
        "dataset": dataset,
        "task": task,
        "image_key": raw.get("image"),
        "completion": raw["completion"],
        "resized": raw.get("resized"),
        **truth,
    }
