"""The plain form: JSON lines of image, prompt and truth.

    {"image": "photos/1.jpg", "prompt": "Where is ...?", "task": "grounding",
     "gt_box": [x1, y1, x2, y2]}                      pixels of the image, xyxy
    {"image": "pages/7.png", "prompt": "What does this page say?", "task": "ocr", "gt_text": "..."}

Optional keys: `id` (the row's own name; default: its line number), `dataset`, `expression` (instead
of `prompt`: the instruction of the run's box format is put around it; LLaVA's is the paper's).
`image` is relative to the file's folder, or to `image_root`.
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perpo_pipeline.boxes import BoxFormat
from perpo_pipeline.prepare.sources import JsonlSource
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.images import image_sha256, load_image_with_notes
from perpo_pipeline.prepare.rows import box_fault, prompt_id

Row = dict[str, Any]
KEYS = {"image", "prompt", "expression", "task", "gt_box", "gt_text", "id", "dataset"}
TASKS = ("grounding", "ocr", "vqa")
FAULTS_SHOWN = 20


def read_jsonl(
    source: JsonlSource, split: str, box_format: BoxFormat
) -> tuple[Sequence[Row], dict[str, Any]]:
    """Read and check every row; returns the rows and the facts that belong in the fingerprint.

    `box_format` asks the questions of rows with an `expression`. Raises `InputError` that lists the
    faults of all rows (the first 20), each by its line.
    """
    root = source.image_root or source.path.parent
    rows: list[Row] = []
    faults: list[str] = []
    taken: Counter[str] = Counter()
    ids: set[str] = set()
    has_expressions = False
    for line, raw in _lines(source.path, faults):
        row, fault = _check_row(raw, line, source, root, split, box_format)
        has_expressions |= bool(raw.get("expression"))
        if fault is None and row["prompt_id"] in ids:
            fault = f"the id {row['source_row']!r} occurs twice"
        if fault is not None:
            faults.append(f"line {line}: {fault}")
            continue
        ids.add(row["prompt_id"])
        taken[row["dataset"]] += 1
        if source.per_dataset is None or taken[row["dataset"]] <= source.per_dataset:
            rows.append(row)
    _raise_faults(source.path, faults)
    if not rows:
        raise InputError(
            "the dataset is empty", where=str(source.path), fix="give a file with at least one row"
        )
    digest = hashlib.sha256("".join(r["prompt_id"] + r["image_sha256"] for r in rows).encode())
    facts = {
        "left_out_by_per_dataset": sum(taken.values()) - len(rows),
        "file_sha256": hashlib.sha256(source.path.read_bytes()).hexdigest(),
        "images_sha256": digest.hexdigest(),
        "image_root": str(root.resolve()),
        "instruction": box_format.instruction if has_expressions else None,
    }
    return rows, facts


def _lines(path: Path, faults: list[str]) -> Iterator[tuple[int, Row]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            "no such dataset file", where=str(path),
            fix="correct `path` in the split's section, or fetch the data (README, 'Data')",
        ) from None  # fmt: skip
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path), fix="give UTF-8 JSON lines") \
            from error  # fmt: skip
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
        except (ValueError, RecursionError) as error:
            faults.append(f"line {number}: not JSON: {error}")
            continue
        if isinstance(raw, dict):
            yield number, raw
        else:
            faults.append(f"line {number}: not a JSON object")


def _check_row(
    raw: Row, line: int, source: JsonlSource, root: Path, split: str, box_format: BoxFormat
) -> tuple[Row, str | None]:
    fault = _key_fault(raw, source)
    if fault:
        return {}, fault
    path = root / raw["image"]
    try:
        image = _image_facts(path)
    except InputError as error:
        return {}, f"image {path}: {error.what}"
    task = raw.get("task", source.task)
    given_box = raw.get("gt_box")
    if given_box is not None or task == "grounding":
        fault = box_fault(given_box, image.width, image.height)
    dataset, source_row = str(raw.get("dataset", source.path.stem)), str(raw.get("id", line))
    box = [float(v) for v in given_box] if given_box is not None and fault is None else None
    prompt = raw.get("prompt") or box_format.ask(raw["expression"])
    return {
        "prompt_id": prompt_id(dataset, split, source_row),
        "dataset": dataset,
        "split": split,
        "task": task,
        "source_row": source_row,
        "image": {
            "bytes": path.read_bytes() if source.embed_images else None,
            "path": None if source.embed_images else str(path.resolve()),
        },
        "image_sha256": image.sha256,
        "image_notes": list(image.notes),
        "width": image.width,
        "height": image.height,
        "prompt": prompt,
        "gt_text": raw.get("gt_text"),
        "gt_box": box,
    }, fault


@dataclass(frozen=True)
class _ImageFacts:
    sha256: str
    width: int
    height: int
    notes: tuple[str, ...]


@functools.lru_cache(maxsize=100_000)
def _image_facts(path: Path) -> _ImageFacts:
    """Decode an image once, however many rows ask about it; raises `InputError`."""
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(reason, where=str(path)) from error
    image, notes = load_image_with_notes(data, where=str(path))
    return _ImageFacts(image_sha256(data), image.width, image.height, notes)


def _key_fault(raw: Row, source: JsonlSource) -> str | None:
    unknown = sorted(set(raw) - KEYS)
    if unknown:
        return f"unknown keys {unknown}; known: {sorted(KEYS)}"
    for key in ("image", "prompt", "expression", "gt_text"):
        if raw.get(key) is not None and not isinstance(raw[key], str):
            return f"`{key}` is not text: {raw[key]!r}"
    if fault := _text_fault(raw):
        return fault
    if not raw.get("image"):
        return "`image` is missing"
    if bool(raw.get("prompt")) == bool(raw.get("expression")):
        return "give either `prompt` or `expression`"
    task = raw.get("task", source.task)
    if task not in TASKS:
        return f"`task` is {task!r}; give one of {list(TASKS)} in the row or in the configuration"
    truth = "gt_box" if task == "grounding" else "gt_text"
    return None if raw.get(truth) is not None else f"`{truth}` is missing (task {task})"


def _text_fault(raw: Row) -> str | None:
    """A lone surrogate or a NUL, which no file name and no table can hold."""
    for key in ("image", "prompt", "expression", "gt_text", "id", "dataset"):
        text = str(raw.get(key, ""))
        if "\x00" in text or any("\ud800" <= c <= "\udfff" for c in text):
            return f"`{key}` holds a character that is no text: {text[:60]!r}"
    return None


def _raise_faults(path: Path, faults: list[str]) -> None:
    if not faults:
        return
    shown = faults[:FAULTS_SHOWN]
    if len(faults) > len(shown):
        shown.append(f"... and {len(faults) - len(shown)} more")
    raise InputError(
        f"{len(faults)} bad rows:\n" + "\n".join(f"  - {fault}" for fault in shown),
        where=str(path), fix="correct or remove these rows; nothing was written",
    )  # fmt: skip
