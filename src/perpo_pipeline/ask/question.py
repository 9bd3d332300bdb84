"""Images, a question and perhaps a truth become a row as `perpo prepare` writes it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perpo_pipeline.answers.formats import get_box_format
from perpo_pipeline.answers.truth import truth_fault
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.json_files import missing_file
from perpo_pipeline.store.prompt_images import box_place, hashes_of, num_images
from perpo_pipeline.store.schemas import PROMPTS
from perpo_pipeline.vlm.image_place import IMAGE_PLACE, places_fault
from perpo_pipeline.vlm.images import image_sha256, load_image_with_notes

GROUNDING, OCR, VQA = "grounding", "ocr", "vqa"
TASKS = (GROUNDING, OCR, VQA)
TRUTHS = PROMPTS.role("truth")

Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """A row of prompts; `is_wrapped` says that the box format's instruction was put around it."""

    row: Row
    task: str
    is_wrapped: bool

    @property
    def truths(self) -> list[str]:
        """The columns of truth that the row has."""
        return [name for name in TRUTHS if self.row[name] is not None]

    @property
    def image_of_boxes(self) -> str:
        """Which image boxes refer to, with its size in pixels; of several, its place from 1."""
        size, count = f"{self.row['width']} x {self.row['height']}", num_images(self.row)
        if count == 1:
            return f"the image of {size}"
        return f"image {box_place(self.row) + 1} of {count} ({size})"


def make_question(
    image: Path,
    text: str,
    *,
    task: str,
    truth: str | None = None,
    verbatim: bool = False,
    box_format: str = "llava",
    more_images: Sequence[Path] = (),
    box_image: int | None = None,
) -> Question:
    """The question about an image file: for grounding, `text` is what to look for.

    `more_images` come after it, and boxes are on the image at the place `box_image`, from 0: the
    last one by default. Each `<image>` in `text` is the place of the next image.

    The instruction of the box format is put around it as for the `expression` of a dataset's row,
    unless `text` is that instruction, the truth is a point, or `verbatim` is true. `truth` is in
    pixels of the upright image, see `read_truth`. Raises InputError for an image that cannot be
    read and for other places than images, ConfigError for a missing file, a truth, a text or a
    `box_image` that cannot be used.
    """
    _check_encoding("QUESTION", text)
    _check_encoding("--truth", truth or "")
    paths = [image, *more_images]
    _check_text(text, len(paths))
    place = _box_place(box_image, len(paths))
    images = [_image(path) for path in paths]
    own = images.pop(place)
    width, height = own.facts["width"], own.facts["height"]
    gt = {} if truth is None else read_truth(truth, task)
    _check_truth(gt, truth, width, height)
    asks = get_box_format(box_format)
    wraps = task == GROUNDING and not verbatim and "gt_point" not in gt
    is_wrapped = wraps and asks.asked_for(text) is None
    prompt = asks.ask(text) if is_wrapped else text
    row: Row = dict.fromkeys(PROMPTS.columns.names)
    row |= {
        "dataset": "ask",
        "split": "ask",
        "task": task,
        "source_row": "1",
        "place": "",
        "image": own.stored,
        "image_sha256": own.facts["sha256"],
        "image_notes": own.facts["notes"],
        "width": width,
        "height": height,
        "prompt": prompt,
        **gt,
    }
    if images:
        row |= {
            "place": "QUESTION",
            "more_images": [one.stored for one in images],
            "more_image_facts": [one.facts for one in images],
            "box_image": place,
        }
    key = " ".join([*hashes_of(row), prompt])
    row["prompt_id"] = hashlib.sha256(key.encode()).hexdigest()[:16]
    return Question(row, task, is_wrapped)


@dataclass(frozen=True)
class _Image:
    """An image as the prompts store it, and its facts, as in `more_image_facts`."""

    stored: Row
    facts: Row


def _image(path: Path) -> _Image:
    if not path.exists():
        raise missing_file(path)
    loaded, notes = load_image_with_notes(path, where=str(path))
    facts = {"sha256": image_sha256(path.read_bytes()), "notes": list(notes)}
    size = {"width": loaded.width, "height": loaded.height}
    return _Image({"bytes": None, "path": str(path.resolve())}, facts | size)


def _box_place(box_image: int | None, images: int) -> int:
    if box_image is None:
        return images - 1
    if not 0 <= box_image < images:
        raise ConfigError(
            f"--box-image {box_image}: it is the place of an image, from 0, and the question has "
            f"{images}",
            fix="correct it, or give more images with --image",
        )
    return box_image


def task_of_truth(truth: str) -> str:
    """The task that a truth belongs to: boxes, outlines and points are grounding, else vqa."""
    return VQA if _as_list(truth) is None else GROUNDING


def read_truth(truth: str, task: str) -> Mapping[str, Any]:
    """The truth as columns of a row: for grounding a JSON list, otherwise the text itself.

    [x1, y1, x2, y2] is a box, [[...], [...]] are several boxes, [] none; [x, y] is a point and a
    list of six numbers or more an outline. Raises ConfigError for anything else.
    """
    if task != GROUNDING:
        return {"gt_text": truth}
    values = _as_list(truth)
    if values is None:
        raise ConfigError(
            f"--truth {truth!r} is no list of numbers, and the task is grounding",
            fix='give a box as "[x1, y1, x2, y2]" in pixels of the image, or set --task vqa',
        )
    if not values or isinstance(values[0], list):
        return {"gt_boxes": values}
    names = {2: "gt_point", 4: "gt_box"}
    return {names.get(len(values), "gt_polygon"): values}


def _as_list(truth: str) -> list[Any] | None:
    try:
        found = json.loads(truth)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def _check_truth(gt: Mapping[str, Any], truth: str | None, width: int, height: int) -> None:
    box, boxes, polygon, point = (gt.get(name) for name in TRUTHS[1:])
    if fault := truth_fault(box, boxes, polygon, width, height, point):
        raise ConfigError(
            f"--truth {truth}: {fault}",
            fix="give x1, y1, x2, y2 in pixels of the upright image",
        )


def _check_encoding(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that the terminal's encoding does not have
        raise ConfigError(
            f"{name} holds bytes that are no text: {text[:60]!r}", fix="give it as UTF-8"
        ) from None


def _check_text(text: str, images: int) -> None:
    if fault := places_fault(text, (), images):
        raise InputError(fault, where="QUESTION", fix=f"give each image one {IMAGE_PLACE}, or none")
    if not text.replace(IMAGE_PLACE, "").strip():
        raise ConfigError("the question is empty", fix='give it in quotes: perpo ask IMAGE "..."')
