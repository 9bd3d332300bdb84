"""One prompt of a dataset: its key, its images and its truth, and the row that it becomes."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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

    def __str__(self) -> str:
        return f"of {len(self.data):,} bytes"


@dataclass(frozen=True, slots=True)
class Entry:
    """One prompt as its dataset's file has it; its truth is checked when the image is known.

    `place` is its place in the file, for messages: "line 2". Boxes are xyxy in pixels; `gt_box`,
    `gt_boxes` and `gt_point` may also be functions of the image's (width, height) that return them
    or raise `RowFault`. `size` is the
    (width, height) that the file claims. `extra` holds other columns of the row,
    as `fields.extra_text` writes them.

    `image` is the one that true boxes refer to. Of a prompt with several, `more_images` are the
    others, in their order, and `box_image` is the place of `image` among all of them, from 0.
    `history` are (role, text) of the turns before the last one of the user, which is `prompt`.
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
    more_images: tuple[ImageData, ...] = ()
    box_image: int | None = None
    history: tuple[tuple[str, str], ...] = ()

    @property
    def images(self) -> tuple[ImageData, ...]:
        """All images: the one that boxes refer to, then the others."""
        return (self.image, *self.more_images)

    @property
    def places(self) -> list[int]:
        """The places of `images` among the prompt's images, from 0."""
        own = self.box_image or 0
        return [own, *(at for at in range(len(self.images)) if at != own)]


def prompt_row(
    entry: Entry,
    split: str,
    facts: ImageFacts,
    *,
    embed: bool,
    file: Path | None = None,
    more: Sequence[ImageFacts] = (),
) -> Row:
    """The PROMPTS row of a checked entry, with the images' paths or (`embed`) their bytes.

    `more` are the facts of `entry.more_images`; `file` is the file that `entry.place` is in. Bytes
    are read again; raises `InputError` if they have changed since they were checked.
    """
    row = _row(entry, split, facts, _stored(entry.image, facts, embed), file)
    if entry.more_images:
        pairs = zip(entry.more_images, more, strict=True)
        row["more_images"] = [_stored(image, of_image, embed) for image, of_image in pairs]
        row["more_image_facts"] = [
            {**asdict(of_image), "notes": list(of_image.notes)} for of_image in more
        ]
        row["box_image"] = entry.box_image
    if entry.history:
        row["history"] = [{"role": role, "content": text} for role, text in entry.history]
    return row


def _stored(image: ImageData, facts: ImageFacts, embed: bool) -> Row:
    """An image as a table holds it: its path, or its bytes."""
    path = image.path
    if not embed and path is not None:
        return {"bytes": None, "path": str(path.resolve())}
    data = image.read()
    if image_sha256(data) != facts.sha256:
        raise InputError(
            "the image has changed since it was checked",
            where=str(image),
            fix="run the same command again",
        )
    return {"bytes": data, "path": None}


def _row(entry: Entry, split: str, facts: ImageFacts, image: Row, file: Path | None) -> Row:
    return {
        "prompt_id": prompt_id(entry.dataset, split, entry.source_row),
        "dataset": entry.dataset,
        "split": split,
        "task": entry.task,
        "source_row": entry.source_row,
        "place": full_place(file, entry.place),
        "image": image,
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
        "more_images": None,
        "more_image_facts": None,
        "box_image": None,
        "history": None,
    }
