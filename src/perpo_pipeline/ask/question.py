"""An image, a question and perhaps a truth become a row as `perpo prepare` writes it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perpo_pipeline.answers.formats import get_box_format
from perpo_pipeline.answers.truth import truth_fault
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.json_files import missing_file
from perpo_pipeline.store.schemas import PROMPTS
from perpo_pipeline.vlm.image_place import IMAGE_PLACE, SEVERAL_PLACES, has_several_places
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


def make_question(
    image: Path,
    text: str,
    *,
    task: str,
    truth: str | None = None,
    verbatim: bool = False,
    box_format: str = "llava",
) -> Question:
    """The question about an image file: for grounding, `text` is what to look for.

    The instruction of the box format is put around it as for the `expression` of a dataset's row,
    unless `text` is that instruction, the truth is a point, or `verbatim` is true. `truth` is in
    pixels of the upright image, see `read_truth`. Raises InputError for an image that cannot be
    read, ConfigError for a missing file, a truth or a text that cannot be used.
    """
    _check_encoding("QUESTION", text)
    _check_encoding("--truth", truth or "")
    _check_text(text)
    if not image.exists():
        raise missing_file(image)
    loaded, notes = load_image_with_notes(image, where=str(image))
    gt = {} if truth is None else read_truth(truth, task)
    _check_truth(gt, truth, *loaded.size)
    asks = get_box_format(box_format)
    wraps = task == GROUNDING and not verbatim and "gt_point" not in gt
    is_wrapped = wraps and asks.asked_for(text) is None
    prompt = asks.ask(text) if is_wrapped else text
    sha256 = image_sha256(image.read_bytes())
    row: Row = dict.fromkeys(PROMPTS.columns.names)
    row |= {
        "prompt_id": hashlib.sha256(f"{sha256} {prompt}".encode()).hexdigest()[:16],
        "dataset": "ask",
        "split": "ask",
        "task": task,
        "source_row": "1",
        "place": "",
        "image": {"bytes": None, "path": str(image.resolve())},
        "image_sha256": sha256,
        "image_notes": list(notes),
        "width": loaded.width,
        "height": loaded.height,
        "prompt": prompt,
        **gt,
    }
    return Question(row, task, is_wrapped)


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


def _check_text(text: str) -> None:
    if has_several_places(text):
        raise InputError(SEVERAL_PLACES, where="QUESTION")
    if not text.replace(IMAGE_PLACE, "").strip():
        raise ConfigError("the question is empty", fix='give it in quotes: perpo ask IMAGE "..."')
