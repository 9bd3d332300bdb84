"""YOLO's folders: data.yaml names the classes and the images, labels/ has a file for each image.

    data.yaml          path: . (optional)   train: images/train   names: [car, person]
    images/train/1.jpg
    labels/train/1.txt   one box per line: class, then centre x, centre y, width and height (0 to 1)

`train`, `val` and `test` are a folder of images, a text file of their paths, or a list of these;
they start from `path`, which starts from data.yaml's folder. As Ultralytics does, `../train/images`
also finds `train/images` (exports of Roboflow need it), and the label file is found by writing
`labels` for the last `images` in the path, or beside the image. Images without a label file, or
with an empty one, make no prompt. Outlines (more than five numbers) are bad rows. The extra column
`category` is the class's name; `dataset` is the folder's name, `_` and the split.
"""

import hashlib
import os.path
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from perpo_pipeline.config.folders import files_below
from perpo_pipeline.config.pages import IMAGE_SUFFIXES
from perpo_pipeline.config.sources import YoloSource
from perpo_pipeline.config.unique_keys import load_yaml
from perpo_pipeline.errors import InputError
from perpo_pipeline.json_files import Faults, Row, RowFault, read_text
from perpo_pipeline.prepare.collect import Prepared, Request
from perpo_pipeline.prepare.entries import Entry, ImageFile
from perpo_pipeline.prepare.fields import text_fault
from perpo_pipeline.prepare.labelled import (
    LabelledBox,
    LabelledImage,
    collect_labelled,
    entries_of,
)


def read_yolo(source: YoloSource, request: Request) -> Prepared:
    """Read the splits; raises `InputError` with the faults of all label files."""
    described = _describe(source.path)
    root = source.image_root or source.path.parent / str(described.get("path") or ".")
    if not os.path.isdir(root):  # also for a name that no file can have
        raise InputError(
            f"there is no folder {root} (`path` of the file)",
            where=str(source.path),
            fix=f"name the folder of the images: prepare.{request.split}.image_root",
        )
    faults, counts, digest = Faults(root), Counter[str](), hashlib.sha256()
    folders: dict[Path, None] = {}  # of images

    def entries() -> Iterator[Entry]:
        for split in source.splits or [request.split]:
            dataset = f"{root.resolve().name}_{split}"
            for image in _images(described, split, root, source.path, request.split):
                found = _labelled(image, root, described["names"], faults, digest)
                folders[image[0].parent] = None
                counts.update(images=1, boxes=len(found.boxes))
                counts["images_without_boxes"] += not found.boxes
                yield from entries_of(found, source.per, dataset, request, faults)

    prepared = collect_labelled(entries(), source, root, request, faults, counts)
    prepared.facts["labels_sha256"] = digest.hexdigest()
    if lonely := [file for folder in folders for file in _labels_without_image(folder)]:
        prepared.counts["found"]["labels_without_image"] = len(lonely)
        prepared.notes["labels_without_image"] = (
            f"{len(lonely):,} of the label files {'has' if len(lonely) == 1 else 'have'} no image, "
            f"for example {lonely[0]}"
        )
    return prepared


def _describe(path: Path) -> Row:
    """data.yaml, its `names` by the number of the class as text."""
    fix = "give YOLO's data.yaml, with `names` and the folders of images (`train`, `val`)"
    try:
        found = load_yaml(read_text(path))
    except yaml.YAMLError as error:
        raise InputError(f"not YAML: {error}", where=str(path), fix=fix) from error
    names = found.get("names") if isinstance(found, dict) else None
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    if not isinstance(names, dict) or not names:
        raise InputError("the file has no `names` of classes", where=str(path), fix=fix)
    for number, name in names.items():
        if not _is_name(name):
            raise InputError(
                f"the name of class {number} is {name!r}, not text",
                where=str(path),
                fix="give it a name, in quotes if it is one such as yes, no, on, off or null",
            )
    return {**found, "names": {number: str(name) for number, name in names.items()}}


def _is_name(name: Any) -> bool:
    """Whether the name of a class is a text, or a number, that a question can name."""
    if isinstance(name, bool) or not isinstance(name, str | int | float):
        return False
    return bool(str(name).strip()) and text_fault("names", str(name)) is None


def _images(
    described: Row, split: str, root: Path, path: Path, prepared: str
) -> Iterator[tuple[Path, str]]:
    """(path, name in messages) of each image of a split, sorted within each of its folders."""
    named = described.get(split)
    places = named if isinstance(named, list) else [named] if named else []
    if not places:
        known = ("train", "val", "test")
        others = [name for name in known if described.get(name)]
        raise InputError(
            f"the file has no split {split!r}; it has {', '.join(others) or 'none'}",
            where=str(path),
            fix=f"name those to read: prepare.{prepared}.splits=[{(others or known)[0]}]",
        )
    for place in map(str, places):
        folder = _existing(root, place, path)
        for image in sorted(_listed(folder) if folder.is_file() else _inside(folder)):
            is_below = image.is_relative_to(root)
            yield image, str(image.relative_to(root)) if is_below else str(image)


def _existing(root: Path, place: str, path: Path) -> Path:
    """The folder or list of images that data.yaml names."""
    candidates = [root / place]
    if place.startswith("../"):
        candidates.append(root / place.removeprefix("../"))
    for candidate in candidates:
        if os.path.exists(candidate):
            return candidate
    raise InputError(
        f"there are no images at {root / place}",
        where=str(path),
        fix="correct the file, or name the folder that its paths start from with image_root",
    )


def _inside(folder: Path) -> list[Path]:
    return [file for file in files_below(folder) if file.suffix.lower() in IMAGE_SUFFIXES]


def _listed(file: Path) -> list[Path]:
    """The images that a text file lists, relative to its folder."""
    return [file.parent / line.strip() for line in read_text(file).splitlines() if line.strip()]


def _labelled(
    image: tuple[Path, str], root: Path, names: Row, faults: Faults, digest: Any
) -> LabelledImage:
    """An image with the boxes of its label file; bad lines are faults."""
    path, name = image
    labels = _label_file(path)
    shown = str(labels.relative_to(root)) if labels.is_relative_to(root) else str(labels)
    boxes: list[LabelledBox] = []
    text = read_text(labels) if os.path.isfile(labels) else ""
    digest.update(f"{name}\0{text}\0".encode(errors="surrogateescape"))  # any name of a file
    for number, line in enumerate(text.splitlines(), start=1):
        place = f"{shown}, line {number}"
        if line.strip():
            with faults.at(place):
                label, box, fault = _parse(line, names)
                boxes.append(LabelledBox(label, box, f"{name}/{number}", place, fault=fault))
    return LabelledImage(ImageFile(path), name, shown, boxes)


def _label_file(image: Path) -> Path:
    """The file of an image's boxes: `labels` in place of the last `images`, else beside it."""
    parts = list(image.with_suffix(".txt").parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts)


def _labels_without_image(folder: Path) -> list[Path]:
    """The label files of a folder of images that belong to none of them."""
    labels = _label_file(folder / "any").parent
    if labels == folder or not os.path.isdir(folder):
        return []  # any text file may stand beside images
    stems = {file.stem for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES}
    files = sorted(labels.glob("*.txt"))
    return [file for file in files if file.stem not in stems | {"classes"}]


def _parse(line: str, names: Row) -> tuple[str, list[float], str]:
    """The label, the box and the fault of a line; raises `RowFault` if it has no known class."""
    number, *words = line.split()
    if number not in names:
        raise RowFault(f"class {number} has no name in data.yaml")
    if len(words) != 4:
        outline = ": an outline is no box" if len(words) > 5 else ""
        return names[number], [], f"{len(words)} numbers behind the class, not 4{outline}"
    try:
        return names[number], [float(word) for word in words], ""
    except ValueError:
        return names[number], [], f"not a class and four numbers: {line.strip()[:60]!r}"
