"""Collects the entries of a source: chooses rows, opens each image once, checks every truth.

A reader turns a dataset's file into entries and hands them to `collect`, which raises the faults of
all rows together.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

from perpo_pipeline.answers.formats import get_box_format
from perpo_pipeline.answers.truth import TINY_IMAGE_PX, is_within_one, truth_fault
from perpo_pipeline.errors import InputError
from perpo_pipeline.json_files import Faults, Row, RowFault
from perpo_pipeline.prepare.entries import Entry, ImageData, ImageFacts, prompt_id, prompt_row
from perpo_pipeline.vlm.images import image_sha256, load_image_with_notes

MOST_THREADS = 16


def _no_bar(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    return items


@dataclass(frozen=True)
class Request:
    """What a reader needs besides its source: the name of the split and the run's settings."""

    split: str
    box_format: str = "llava"
    box_frame: str = "full"
    seed: int = 0
    progress: Callable[[Iterable[Any], str, int], Iterable[Any]] = _no_bar

    @property
    def instruction(self) -> str:
        """The question for a box, with `{expression}`."""
        return get_box_format(self.box_format).instruction

    def question(self, expression: str) -> str:
        """The question for the box of what `expression` describes."""
        return get_box_format(self.box_format).ask(expression)


@dataclass(frozen=True)
class ReleasedList:
    """The answers to one prompt and their released scores, `(N,)` each."""

    answers: Sequence[str]
    scores: Sequence[float]


@dataclass(frozen=True)
class Prepared:
    """A dataset that was read: its rows, facts for the fingerprint, and notes for the manifest.

    `counts` holds what was found, `left_out` how many rows were left out for which reason. Each
    note is also printed. `lists` holds one `ReleasedList` per row if the source has answers, too.
    """

    rows: Sequence[Row]
    facts: dict[str, Any]
    counts: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    lists: Sequence[ReleasedList] | None = None


class PromptRows(Sequence[Row]):
    """Rows that are built when they are used: an embedded image is read only then."""

    def __init__(
        self,
        checked: Sequence[tuple[Entry, ImageFacts]],
        split: str,
        *,
        embed: bool,
        file: Path | None,
    ) -> None:
        self.checked, self.split, self.embed, self.file = checked, split, embed, file

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
        return prompt_row(entry, self.split, facts, embed=self.embed, file=self.file)


def collect(
    entries: Iterable[Entry],
    faults: Faults,
    request: Request,
    *,
    embed: bool = False,
    per_dataset: int | None = None,
    threads: int = MOST_THREADS,
) -> Prepared:
    """Choose `per_dataset` entries of each dataset; check them and their images.

    The entries with the smallest hashes of (seed, key) are chosen: a random choice that does not
    depend on the order of the rows. They keep their order. Images of other rows are not opened.
    Raises `InputError` with the faults of all rows, for boxes that all look normalised, for a
    dataset with fewer than `per_dataset` rows, and for no rows at all. The facts are
    `images_sha256`, `left_out_by_per_dataset`, and the seed if rows were chosen.
    """
    unique = _without_repeated_ids(entries, faults, request.split)
    chosen, shortages = _choose(unique, per_dataset, request)
    checked = list(_checked(chosen, faults, request, threads))
    faults.check()
    if shortages:
        raise InputError(
            f"per_dataset takes {per_dataset} rows from each dataset, but {'; '.join(shortages)}",
            where=faults.where,
            fix="lower per_dataset, or leave these datasets out",
        )
    if not checked:
        raise InputError(
            "the dataset is empty", where=faults.where, fix="give a file with at least one row"
        )
    keys = (prompt_id(e.dataset, request.split, e.source_row) + f.sha256 for e, f in checked)
    facts: dict[str, Any] = {
        "left_out_by_per_dataset": len(unique) - len(chosen),
        "images_sha256": hashlib.sha256("".join(keys).encode()).hexdigest(),
    }
    if per_dataset is not None:
        facts["seed"] = request.seed
    file = None if faults.where is None else Path(faults.where)
    return Prepared(PromptRows(checked, request.split, embed=embed, file=file), facts)


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
    entries: list[Entry], per_dataset: int | None, request: Request
) -> tuple[list[Entry], list[str]]:
    """The entries that stay, in their order, and the datasets that have too few."""
    if per_dataset is None:
        return entries, []
    drawn: dict[str, list[tuple[str, int]]] = {}
    for index, entry in enumerate(entries):
        key = prompt_id(entry.dataset, request.split, entry.source_row)
        draw = hashlib.sha256(f"{request.seed} {key}".encode()).hexdigest()
        drawn.setdefault(entry.dataset, []).append((draw, index))
    kept = sorted(index for draws in drawn.values() for _, index in sorted(draws)[:per_dataset])
    shortages = [
        f"{name} has only {len(draws)}" for name, draws in drawn.items() if len(draws) < per_dataset
    ]
    return [entries[index] for index in kept], shortages


def _checked(
    entries: list[Entry], faults: Faults, request: Request, threads: int
) -> Iterator[tuple[Entry, ImageFacts]]:
    """The entries without faults, with their images' facts."""
    images = list(dict.fromkeys(entry.image for entry in entries))
    with ThreadPoolExecutor(min(threads, os.cpu_count() or 1)) as pool:
        looks = request.progress(pool.map(_look_at, images), "images", len(images))
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
    """Raise `InputError` if all boxes are within 0 to 1: one mistake, not one per row."""
    shapes = [
        shape for entry in entries if not _is_tiny(facts[entry.image]) for shape in _shapes(entry)
    ]
    if len(shapes) > 1 and all(map(is_within_one, shapes)):
        raise InputError(
            f"all {len(shapes)} boxes are within 0-1: they look normalised; give pixels",
            where=where,
            fix="multiply x by the image's width, and y by its height",
        )


def _is_tiny(image: ImageFacts | str) -> bool:
    return isinstance(image, ImageFacts) and min(image.width, image.height) <= TINY_IMAGE_PX


def _shapes(entry: Entry) -> list[Any]:
    """The boxes and the polygon of an entry, as they are in the file."""
    several = entry.gt_boxes if isinstance(entry.gt_boxes, list | tuple) else ()
    return [shape for shape in (entry.gt_box, *several, entry.gt_polygon) if shape is not None]


def _look_at(image: ImageData) -> ImageFacts | str:
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
