"""One prompt of a dataset: its key, its image and its truth, and the row that it becomes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from perpo_pipeline.errors import InputError
from perpo_pipeline.json_files import Row
from perpo_pipeline.store.places import full_place
from perpo_pipeline.vlm.images import image_sha256


def prompt_id(dataset: str, split: str, source_row: str) -> str:
    """Stable key of a prompt: 16 hex digits of the hash of where it came from."""
    key = "\x1f".join((dataset, split, source_row))
    return hashlib.sha256(key.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What a row holds about its image: width and height are pixels of the upright image."""

    sha256: str
    width: int
    height: int
    notes: tuple[str, ...] = ()


class ImageData(Protocol):
    """Where an image's bytes are; equal (and so hashable) ones are one image, `str` names it."""

    @property
    def path(self) -> Path | None:
        """The image's own file, None if it is inside another file."""

    def read(self) -> bytes:
        """The image's bytes; raises `InputError`."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image in a separate file; `note` says how the file's name was built, for faults."""

    path: Path
    note: str = ""

    def read(self) -> bytes:
        """The file's bytes; raises `InputError`."""
        try:
            return self.path.read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(reason, where=str(self.path)) from error

    def __str__(self) -> str:
        return f"{self.path} ({self.note})" if self.note else str(self.path)


@dataclass(frozen=True, slots=True)
class ImageBytes:
    """An image in memory."""

    data: bytes

    @property
    def path(self) -> Path | None:
        """None, because the image has no file."""
        return None

    def read(self) -> bytes:
        """The bytes."""
        return self.data


@dataclass(frozen=True, slots=True)
class Entry:
    """One prompt as its dataset's file has it; its truth is checked when the image is known.

    `place` is its place in the file, for messages: "line 2". Boxes are xyxy in pixels; `gt_box`,
    `gt_boxes` and `gt_point` may also be functions of the image's (width, height) that return them
    or raise `RowFault`. `size` is the
    (width, height) that the file claims. `extra` holds other columns of the row,
    as `fields.extra_text` writes them.
    """

    place: str
    dataset: str
    source_row: str
    task: str
    image: ImageData
    prompt: str
    gt_text: str | None = None
    gt_box: Any = None
    gt_boxes: Any = None
    gt_polygon: Any = None
    gt_point: Any = None
    size: tuple[Any, Any] | None = None
    extra: str | None = None


def prompt_row(
    entry: Entry, split: str, facts: ImageFacts, *, embed: bool, file: Path | None = None
) -> Row:
    """The PROMPTS row of a checked entry, with the image's path or (`embed`) its bytes.

    `file` is the file that `entry.place` is in. Bytes are read again; raises `InputError` if they
    have changed since they were checked.
    """
    path, data = entry.image.path, None
    if embed or path is None:
        path, data = None, entry.image.read()
        if image_sha256(data) != facts.sha256:
            raise InputError(
                "the image has changed since it was checked",
                where=str(entry.image),
                fix="run the same command again",
            )
    return {
        "prompt_id": prompt_id(entry.dataset, split, entry.source_row),
        "dataset": entry.dataset,
        "split": split,
        "task": entry.task,
        "source_row": entry.source_row,
        "place": full_place(file, entry.place),
        "image": {"bytes": data, "path": None if path is None else str(path.resolve())},
        "image_sha256": facts.sha256,
        "image_notes": list(facts.notes),
        "width": facts.width,
        "height": facts.height,
        "prompt": entry.prompt,
        "gt_text": entry.gt_text,
        "gt_box": entry.gt_box,
        "gt_boxes": entry.gt_boxes,
        "gt_polygon": entry.gt_polygon,
        "gt_point": entry.gt_point,
        "extra": entry.extra,
    }
