"""Collects the entries of a source: chooses rows, opens each image once, checks every truth.

A reader turns a dataset's file into entries and hands them to `collect`, which raises the faults of
all rows together.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

from perpo_pipeline.answers.formats import get_box_format
from perpo_pipeline.answers.truth import are_numbers, truth_fault
from perpo_pipeline.errors import InputError
from perpo_pipeline.json_files import Fault, Faults, Row, RowFault
from perpo_pipeline.prepare.entries import Entry, ImageData, ImageFacts, prompt_id, prompt_row
from perpo_pipeline.prepare.readings import Doubt, doubt_boxes
from perpo_pipeline.prepare.units import (
    PARTS,
    Order,
    Shape,
    Unit,
    as_xyxy,
    in_pixels,
    refuse_other_units,
)
from perpo_pipeline.store.places import full_place
from perpo_pipeline.vlm.image_place import IMAGE_PLACE, history_fault, places_fault
from perpo_pipeline.vlm.images import image_sha256, load_image_with_notes

MOST_THREADS = 16
_NUMBER = re.compile("([0-9]+)")


def _no_bar(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    return items


@dataclass(frozen=True)
class Request:
    """What a reader needs besides its source: the name of the split and the run's settings."""

    split: str
    box_format: str = "llava"
    box_frame: str = "full"
    seed: int = 0
    box: Order = "xyxy"
    unit: Unit | None = "px"  # None: pixels, but ask if they look like another unit
    leave_out_bad_rows: bool = False
    settings: Collection[str] = ()  # the names of those that the source has
    survey: int | None = None  # open only this many images: for `perpo plan`
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

    `counts` holds what was found, `left_out` how many rows were left out for which reason, and
    `bad_rows` the bad ones among these. Each note is also printed. `lists` holds one `ReleasedList`
    per row if the source has answers, too. `doubt` says what speaks for another reading of the true
    boxes, and is printed each time.
    """

    rows: Sequence[Row]
    facts: dict[str, Any]
    counts: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    bad_rows: Sequence[Row] = ()  # of the table `left_out`
    source_rows: Sequence[str] = ()  # one per row
    lists: Sequence[ReleasedList] | None = None
    doubt: str | None = None


class RowsOnDemand(Sequence[Row]):
    """`length` rows that are built when they are used: an embedded image is read only then.

    `build` makes the row of an index in [0, length).
    """

    def __init__(self, length: int, build: Callable[[int], Row]) -> None:
        self.length, self.build = length, build

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.length))]
        if index >= self.length:
            raise IndexError(index)  # which ends a loop over the rows
        return self.build(index)


def collect(
    entries: Iterable[Entry],
    faults: Faults,
    request: Request,
    *,
    embed: bool = False,
    per_dataset: int | None = None,
    threads: int = MOST_THREADS,
    found: Mapping[str, int] = MappingProxyType({}),
) -> Prepared:
    """Choose `per_dataset` entries of each dataset; check them and their images.

    The entries with the smallest hashes of (seed, key) are chosen: a random choice that does not
    depend on the order of the rows. They keep their order. Images of other rows are not opened.
    Where bad rows are left out, the next entries of the same dataset take their places. `found`
    counts what the reader found, for the error if that makes no prompt.

    Raises `InputError` with the faults of all rows (if bad rows are left out: only if none
    remains), for boxes that all look like another unit than pixels, for a dataset with fewer than
    `per_dataset` rows, and for no rows at all. The facts are `images_sha256`,
    `left_out_by_per_dataset`, and the seed if rows were chosen.
    """
    unique = _usable_prompts(entries, faults, request.split)
    number = None
    if request.survey is not None:
        unique, number = _draw_some(unique, per_dataset, request)
        per_dataset = None
    checks = _Checks(faults, request, threads)
    keys, shortages = _choose_and_check(unique, per_dataset, checks)
    checked = [checks.good[key] for key in keys if key in checks.good]
    faults.found.sort(key=in_order_of_numbers)
    doubt = None
    if checks.doubt is not None:
        doubt = checks.doubt.sentence(request.split, request.settings)
    if not (request.leave_out_bad_rows and checked):
        faults.fix = _fix(request) if checked else _fix_of_all(faults)
        if doubt is not None:
            faults.fix = f"{doubt}; otherwise {faults.fix}"
        faults.check()
    if shortages:
        raise InputError(
            f"per_dataset takes {per_dataset} rows from each dataset, but {'; '.join(shortages)}",
            where=faults.where,
            fix="lower per_dataset, or leave these datasets out",
        )
    if not checked and any(found.values()):
        counted = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in found.items())
        raise InputError(
            f"nothing in the dataset makes a prompt: {counted}",
            where=faults.where,
            fix="give a file with labelled boxes",
        )
    if not checked:
        raise InputError(
            "the dataset is empty", where=faults.where, fix="give a file with at least one row"
        )
    hashed = (
        key + "".join(image.sha256 for image in images)
        for key, (_, images) in zip(keys, checked, strict=True)
    )
    facts: dict[str, Any] = {
        "left_out_by_per_dataset": len(unique) - len(checks.bad) - len(keys),
        "images_sha256": hashlib.sha256("".join(hashed).encode()).hexdigest(),
        **_facts_of_turns([entry for entry, _ in checked]),
    }
    if per_dataset is not None:
        facts["seed"] = request.seed
    file = _file_of(faults)
    return Prepared(
        RowsOnDemand(
            len(checked),
            lambda index: _checked_row(*checked[index], request.split, embed, file),
        ),
        facts,
        counts={} if number is None else {"prompts": number},
        left_out=dict(Counter(fault.reason for fault in faults.found)),
        bad_rows=[{**f._asdict(), "place": full_place(file, f.place)} for f in faults.found],
        source_rows=[entry.source_row for entry, _ in checked],
        doubt=doubt,
    )


def _facts_of_turns(entries: Sequence[Entry]) -> dict[str, bool]:
    """What counts of images and turns beyond one of each; nothing where there is one of each.

    Programs before it kept these columns as others; their prompts are not these.
    """
    several = any(entry.more_images for entry in entries)
    history = any(entry.history for entry in entries)
    found = {"several_images": several, "history": history}
    return {name: True for name, is_there in found.items() if is_there}


def _checked_row(
    entry: Entry, facts: tuple[ImageFacts, ...], split: str, embed: bool, file: Path | None
) -> Row:
    return prompt_row(entry, split, facts[0], embed=embed, file=file, more=facts[1:])


def _file_of(faults: Faults) -> Path | None:
    """The dataset's file; None if there are several, which the places name themselves."""
    where = None if faults.where is None else Path(faults.where)
    return where if where is not None and where.is_file() else None


def in_order_of_numbers(fault: Fault) -> list[Any]:
    """The key that puts line 9 before line 10: texts, and between them numbers of any length."""
    parts = _NUMBER.split(fault.place)
    return [(len(digits := p.lstrip("0")), digits) if i % 2 else p for i, p in enumerate(parts)]


def _fix_of_all(faults: Faults) -> str:
    """What to do where no row can be used."""
    reasons = {fault.reason for fault in faults.found}
    likely = {
        "bad_image": "check the paths, and --image-root that they start from: no image can be read",
        "bad_row": "correct the rows, or choose another SOURCE (see `perpo prepare --help`) if the "
        "file has another layout: no row can be used",
        "no_text": "give each image a text file of its name (page.png, page.txt), and each PDF a "
        "text layer, as OCR programs add it: no page has a true text",
        "bad_pdf": "save the PDFs whole and without a password: none can be read",
    }
    advice = likely.get("".join(reasons), "correct the rows: none can be used")
    return f"{advice}; nothing was written"


def _fix(request: Request) -> str:
    return (
        "correct or remove these rows; or leave them out, counted, with "
        f"--set prepare.{request.split}.leave_out_bad_rows=true; nothing was written"
    )


def _usable_prompts(entries: Iterable[Entry], faults: Faults, split: str) -> dict[str, Entry]:
    """The entries by prompt_id: with an id of their own, a text, and a place for each image."""
    unique: dict[str, Entry] = {}
    for entry in entries:
        try:
            key = prompt_id(entry.dataset, split, entry.source_row)
        except UnicodeEncodeError:
            what = f"its id {entry.source_row!r} of {entry.dataset!r} is not text (UTF-8)"
            faults.add(entry.place, what)
            continue
        if key in unique:
            faults.add(entry.place, f"the id {entry.source_row!r} occurs twice", "repeated_id")
        elif fault := history_fault(entry.history) or places_fault(
            entry.prompt, entry.history, len(entry.images)
        ):
            faults.add(entry.place, fault)
        elif not entry.prompt.replace(IMAGE_PLACE, "").strip():
            faults.add(entry.place, f"the prompt has no text: {entry.prompt!r}")
        else:
            unique[key] = entry
    return unique


def _choose_and_check(
    unique: dict[str, Entry], per_dataset: int | None, checks: "_Checks"
) -> tuple[list[str], list[str]]:
    """As `_choose`; where bad rows are left out, others are drawn in their place."""
    request = checks.request
    keys, shortages = _choose(unique, per_dataset, request)
    checks.look_at(image for key in keys for image in unique[key].images)
    checks.doubt = checks.doubt_boxes(unique[key] for key in keys)
    refuse_other_units(
        [shape for key in keys for shape in checks.shapes(unique[key])],
        request.unit,
        where=checks.faults.where,
        setting=f"prepare.{request.split}.unit",
        or_else=None if checks.doubt is None else checks.doubt.figures,
    )
    checks.check({key: unique[key] for key in keys})
    while request.leave_out_bad_rows and not checks.bad.isdisjoint(keys):
        others = {key: entry for key, entry in unique.items() if key not in checks.bad}
        keys, shortages = _choose(others, per_dataset, request)
        checks.look_at(image for key in keys for image in unique[key].images)
        checks.check({key: unique[key] for key in keys if key not in checks.good})
    return keys, shortages


def _choose(
    entries: dict[str, Entry], per_dataset: int | None, request: Request
) -> tuple[list[str], list[str]]:
    """The keys of the entries that stay, in their order, and the datasets that have too few."""
    if per_dataset is None:
        return list(entries), []
    drawn: dict[str, list[tuple[str, int, str]]] = {}
    for index, (key, entry) in enumerate(entries.items()):
        draw = hashlib.sha256(f"{request.seed} {key}".encode()).hexdigest()
        drawn.setdefault(entry.dataset, []).append((draw, index, key))
    kept = sorted(one[1:] for draws in drawn.values() for one in sorted(draws)[:per_dataset])
    shortages = [
        f"{name} has only {len(draws)}" for name, draws in drawn.items() if len(draws) < per_dataset
    ]
    return [key for _, key in kept], shortages


def _draw_some(
    entries: dict[str, Entry], per_dataset: int | None, request: Request
) -> tuple[dict[str, Entry], int]:
    """Some of the entries that would be chosen, at random by their keys, and how many would be."""
    keys, _ = _choose(entries, per_dataset, request)
    some = set(sorted(keys)[: request.survey])
    return {key: entry for key, entry in entries.items() if key in some}, len(keys)


@dataclass
class _Checks:
    """Checks entries and opens each image once; `good` and `bad` are by prompt_id."""

    faults: Faults
    request: Request
    threads: int
    looks: dict[ImageData, ImageFacts | str] = field(default_factory=dict)
    good: dict[str, tuple[Entry, tuple[ImageFacts, ...]]] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)
    doubt: Doubt | None = None

    def look_at(self, images: Iterable[ImageData]) -> None:
        """Open the images that were not opened before."""
        new = [image for image in dict.fromkeys(images) if image not in self.looks]
        with ThreadPoolExecutor(min(self.threads, os.cpu_count() or 1)) as pool:
            looks = self.request.progress(pool.map(_look_at, new), "images", len(new))
            self.looks.update(zip(new, looks, strict=True))

    def shapes(self, entry: Entry) -> Iterator[Shape]:
        """The boxes (xyxy) and the polygon of an entry in its file's unit, if its image is good."""
        image = self.looks[entry.image]
        several = entry.gt_boxes if isinstance(entry.gt_boxes, list | tuple) else ()
        if isinstance(image, ImageFacts):
            boxes = [as_xyxy(box, self.request.box) for box in (entry.gt_box, *several)]
            for flat in (*boxes, entry.gt_polygon, entry.gt_point):
                if flat is not None:
                    yield Shape(entry.place, flat, image.width, image.height)

    def doubt_boxes(self, entries: Iterable[Entry]) -> Doubt | None:
        """What speaks for another reading of the entries' true boxes."""
        boxes, sizes = [], []
        for entry in entries:
            image, several = self.looks[entry.image], entry.gt_boxes
            if isinstance(image, ImageFacts):
                given = [entry.gt_box, *(several if isinstance(several, list | tuple) else ())]
                found = [box for box in given if are_numbers(box, 4)]
                boxes += found
                sizes += [(image.width, image.height)] * len(found)
        return doubt_boxes(boxes, sizes, self.request.box, self.request.unit)

    def check(self, entries: Mapping[str, Entry]) -> None:
        """Sort entries into good and bad ones, and record the faults of the bad ones."""
        for key, entry in entries.items():
            looks = [self.looks[image] for image in entry.images]
            facts = tuple(look for look in looks if isinstance(look, ImageFacts))
            self.bad.add(key)
            if len(facts) < len(looks):
                self._add_bad_images(entry, looks)
                continue
            with self.faults.at(entry.place, "bad_truth"):
                self.good[key] = (_with_checked_truth(entry, facts[0], self.request), facts)
                self.bad.remove(key)

    def _add_bad_images(self, entry: Entry, looks: Sequence[ImageFacts | str]) -> None:
        """Record what is wrong with the images of an entry; of several, by their numbers."""
        found = [
            (f"image {place + 1}, {image}" if entry.more_images else f"image {image}", look)
            for place, image, look in zip(entry.places, entry.images, looks, strict=True)
            if isinstance(look, str)
        ]
        what = "; ".join(f"{name}: {look}" for name, look in sorted(found))
        self.faults.add(entry.place, what, "bad_image")


def _look_at(image: ImageData) -> ImageFacts | str:
    """The facts of an image, or what is wrong with it."""
    try:
        data = image.read()
        loaded, notes = load_image_with_notes(data, where=str(image))
    except InputError as error:
        return error.what
    return ImageFacts(image_sha256(data), loaded.width, loaded.height, notes)


def _with_checked_truth(entry: Entry, image: ImageFacts, request: Request) -> Entry:
    """The entry with its truth in pixels; raises `RowFault`."""
    width, height = image.width, image.height
    if entry.size is not None and entry.size != (width, height):
        says = " x ".join(map(repr, entry.size))
        raise RowFault(f"the file says the image is {says} pixels, but it is {width} x {height}")

    def convert(flat: Any) -> Any:
        return in_pixels(flat, request.unit, width, height)

    def convert_box(box: Any) -> Any:
        return convert(as_xyxy(box, request.box))

    def known(found: Any, convert_it: Callable[[Any], Any]) -> Any:
        """A truth in pixels: as its function says, or as the file's numbers are converted."""
        return found(width, height) if callable(found) else convert_it(found)

    box = known(entry.gt_box, convert_box)
    point, polygon = known(entry.gt_point, convert), convert(entry.gt_polygon)
    boxes = entry.gt_boxes(width, height) if callable(entry.gt_boxes) else entry.gt_boxes
    if isinstance(entry.gt_boxes, list | tuple):
        boxes = [convert_box(one) for one in entry.gt_boxes]
    if fault := truth_fault(box, boxes, polygon, width, height, point):
        raise RowFault(fault + _converted_from(request))
    return replace(
        entry,
        gt_box=None if box is None else [float(v) for v in box],
        gt_boxes=None if boxes is None else [[float(v) for v in box] for box in boxes],
        gt_polygon=None if polygon is None else [float(v) for v in polygon],
        gt_point=None if point is None else [float(v) for v in point],
    )


def _converted_from(request: Request) -> str:
    """What the numbers in a fault were before they became xyxy in pixels."""
    order = [request.box] if request.box != "xyxy" else []
    unit = [str(request.unit)] if request.unit in PARTS else []
    return f" (converted from {' in '.join(order + unit)})" if order or unit else ""
