"""What every source shares: a prompt's row, its key, the checks of its truth and of its image.

A reader turns a dataset's file into `Entry`s and hands them to `collect`, which chooses, looks at
each image once, and raises the faults of all rows together.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, overload

from perpo_pipeline.answers.formats import get_box_format
from perpo_pipeline.answers.truth import (
    TINY_IMAGE_PX,
    lies_within_one,
    truth_fault,
)
from perpo_pipeline.errors import InputError
from perpo_pipeline.json_files import Faults, Row, RowFault
from perpo_pipeline.vlm.images import image_sha256, load_image_with_notes

MOST_THREADS = 16


def prompt_id(dataset: str, split: str, source_row: str) -> str:
    """Stable key of a prompt: 16 hex digits of the hash of where it came from."""
    key = "\x1f".join((dataset, split, source_row))
    return hashlib.sha256(key.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What a row says of its image; width and height are those of the upright image, in pixels."""

    sha256: str
    width: int
    height: int
    notes: tuple[str, ...] = ()


class ImageData(Protocol):
    """Where an image's bytes are (hashable: equal ones are one image); `str` names it."""

    @property
    def path(self) -> Path | None:
        """The image's own file, None where it lies inside another."""

    def read(self) -> bytes:
        """Its bytes; raises `InputError`."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image that is a file of its own; `note` says how its name came about, for faults."""

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
    """An image that is no file."""

    data: bytes

    @property
    def path(self) -> Path | None:
        """None: there is no file."""
        return None

    def read(self) -> bytes:
        """The bytes."""
        return self.data


@dataclass(frozen=True, slots=True)
class Entry:
    """One prompt as a dataset's file has it; its truth is checked once the image's size is known.

    `place` is where in the file, for faults; boxes are xyxy in pixels, or a function of (width,
    height) that returns one or raises `RowFault`; `size` is what the file says (width, height) is.
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
    size: tuple[Any, Any] | None = None


def prompt_row(entry: Entry, split: str, facts: ImageFacts, *, embed: bool) -> Row:
    """The PROMPTS row of a checked entry; the image by its path, or by its bytes.

    Bytes are read now; raises `InputError` if they are no longer those that were checked.
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
    }


def _no_bar(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    return items


@dataclass(frozen=True)
class Asked:
    """What a reader is told besides its source: the prepared split and the run's settings."""

    split: str
    box_format: str = "llava"
    box_frame: str = "full"
    seed: int = 0
    progress: Callable[[Iterable[Any], str, int], Iterable[Any]] = _no_bar

    @property
    def instruction(self) -> str:
        """The question for a box, with `{expression}`."""
        return get_box_format(self.box_format).instruction

    def ask(self, expression: str) -> str:
        """The question for the box of what `expression` describes."""
        return get_box_format(self.box_format).ask(expression)


@dataclass(frozen=True)
class Prepared:
    """A read dataset: its rows, the facts for the fingerprint, and what the manifest records.

    `counts` are of what was found, `left_out` of rows under the reason why they are not there;
    each note is also told to the user.
    """

    rows: Sequence[Row]
    facts: dict[str, Any]
    counts: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


class PromptRows(Sequence[Row]):
    """Rows that are built when they are asked for: an embedded image is read only then."""

    def __init__(
        self, checked: Sequence[tuple[Entry, ImageFacts]], split: str, *, embed: bool
    ) -> None:
        self.checked, self.split, self.embed = checked, split, embed

    def __len__(self) -> int:
        return len(self.checked)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        entry, facts = self.checked[index]
        return prompt_row(entry, self.split, facts, embed=self.embed)


def collect(
    entries: Iterable[Entry],
    faults: Faults,
    asked: Asked,
    *,
    embed: bool = False,
    per_dataset: int | None = None,
    threads: int = MOST_THREADS,
) -> Prepared:
    """Choose `per_dataset` entries of each dataset, check them and their images.

    The choice is that of the smallest hash of (seed, key): random, and the same in any order of
    the rows, which keep theirs. Images of rows that are left out are not opened. Raises
    `InputError` with the faults of all rows, for boxes that all look normalised, for a dataset with
    fewer rows than are asked for, and for none at all. The facts: `images_sha256`,
    `left_out_by_per_dataset`, and the seed if chosen.
    """
    unique = _without_repeated_ids(entries, faults, asked.split)
    chosen, shortages = _choose(unique, per_dataset, asked)
    checked = list(_checked(chosen, faults, asked, threads))
    faults.check()
    if shortages:
        raise InputError(
            f"per_dataset asks for {per_dataset} rows of each dataset: {'; '.join(shortages)}",
            where=faults.where,
            fix="lower per_dataset, or leave these datasets out",
        )
    if not checked:
        raise InputError(
            "the dataset is empty", where=faults.where, fix="give a file with at least one row"
        )
    keys = (prompt_id(e.dataset, asked.split, e.source_row) + f.sha256 for e, f in checked)
    facts: dict[str, Any] = {
        "left_out_by_per_dataset": len(unique) - len(chosen),
        "images_sha256": hashlib.sha256("".join(keys).encode()).hexdigest(),
    }
    if per_dataset is not None:
        facts["seed"] = asked.seed
    return Prepared(PromptRows(checked, asked.split, embed=embed), facts)


def _without_repeated_ids(entries: Iterable[Entry], faults: Faults, split: str) -> list[Entry]:
    unique: dict[str, Entry] = {}
    for entry in entries:
        key = prompt_id(entry.dataset, split, entry.source_row)
        if key in unique:
            faults.add(entry.place, f"the id {entry.source_row!r} occurs twice")
        else:
            unique[key] = entry
    return list(unique.values())


def _choose(
    entries: list[Entry], per_dataset: int | None, asked: Asked
) -> tuple[list[Entry], list[str]]:
    """The entries that stay, in their order, and which datasets have too few."""
    if per_dataset is None:
        return entries, []
    drawn: dict[str, list[tuple[str, int]]] = {}
    for index, entry in enumerate(entries):
        key = prompt_id(entry.dataset, asked.split, entry.source_row)
        draw = hashlib.sha256(f"{asked.seed} {key}".encode()).hexdigest()
        drawn.setdefault(entry.dataset, []).append((draw, index))
    kept = sorted(index for draws in drawn.values() for _, index in sorted(draws)[:per_dataset])
    shortages = [
        f"{name} has {len(draws)}" for name, draws in drawn.items() if len(draws) < per_dataset
    ]
    return [entries[index] for index in kept], shortages


def _checked(
    entries: list[Entry], faults: Faults, asked: Asked, threads: int
) -> Iterator[tuple[Entry, ImageFacts]]:
    """The sound ones among the entries, with their images' facts."""
    images = list(dict.fromkeys(entry.image for entry in entries))
    with ThreadPoolExecutor(min(threads, os.cpu_count() or 1)) as pool:
        looks = asked.progress(pool.map(_look, images), "images", len(images))
        facts = dict(zip(images, looks, strict=True))
    _refuse_normalised(entries, facts, faults.where)
    for entry in entries:
        found = facts[entry.image]
        if isinstance(found, str):
            faults.add(entry.place, f"image {entry.image}: {found}")
            continue
        with faults.at(entry.place):
            yield _with_checked_truth(entry, found), found


def _refuse_normalised(
    entries: list[Entry], facts: dict[ImageData, ImageFacts | str], where: str | None
) -> None:
    """Raise `InputError` if all boxes lie within 0 to 1: one mistake, not one of each row."""
    shapes = [
        shape for entry in entries if not _is_tiny(facts[entry.image]) for shape in _shapes(entry)
    ]
    if len(shapes) > 1 and all(map(lies_within_one, shapes)):
        raise InputError(
            f"all {len(shapes)} boxes lie within 0-1: they look normalised; boxes are pixels",
            where=where,
            fix="multiply x by the image's width, and y by its height",
        )


def _is_tiny(image: ImageFacts | str) -> bool:
    return isinstance(image, ImageFacts) and min(image.width, image.height) <= TINY_IMAGE_PX


def _shapes(entry: Entry) -> list[Any]:
    """The boxes and the polygon of an entry, as they stand in the file."""
    several = entry.gt_boxes if isinstance(entry.gt_boxes, list | tuple) else ()
    return [shape for shape in (entry.gt_box, *several, entry.gt_polygon) if shape is not None]


def _look(image: ImageData) -> ImageFacts | str:
    """The facts of an image, or what is wrong with it."""
    try:
        data = image.read()
        loaded, notes = load_image_with_notes(data, where=str(image))
    except InputError as error:
        return error.what
    return ImageFacts(image_sha256(data), loaded.width, loaded.height, notes)


def _with_checked_truth(entry: Entry, image: ImageFacts) -> Entry:
    width, height = image.width, image.height
    if entry.size is not None and entry.size != (width, height):
        says = " x ".join(map(repr, entry.size))
        raise RowFault(f"the file says the image is {says} pixels, but it is {width} x {height}")
    box = entry.gt_box(width, height) if callable(entry.gt_box) else entry.gt_box
    if fault := truth_fault(box, entry.gt_boxes, entry.gt_polygon, width, height):
        raise RowFault(fault)
    boxes, polygon = entry.gt_boxes, entry.gt_polygon
    return replace(
        entry,
        gt_box=None if box is None else [float(v) for v in box],
        gt_boxes=None if boxes is None else [[float(v) for v in box] for box in boxes],
        gt_polygon=None if polygon is None else [float(v) for v in polygon],
    )
