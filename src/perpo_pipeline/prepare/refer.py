"""REFER's own layout of RefCOCO, RefCOCO+ and RefCOCOg.

    ROOT/refcoco/   refs(unc).p  refs(google).p  instances.json
    ROOT/refcoco+/  refs(unc).p                  instances.json
    ROOT/refcocog/  refs(umd).p  refs(google).p  instances.json

`refs(...).p` is a pickle of Python 2 with a list of refs: `ref_id, ann_id, image_id, split,
sentences[{sent_id, sent}]`; one row is one sentence. Boxes are those of the annotations in
instances.json, xywh in pixels of the full image, and become xyxy. The image's file is the one that
instances.json names for its id: the `file_name` of a ref names another file, which does not exist.

All splits of all three datasets use images of COCO train2014, so a training image may be an image
that another dataset evaluates on. Such images are left out of train (`leave_out_evaluated`).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perpo_pipeline.answers.truth import xyxy_from_xywh
from perpo_pipeline.config.sources import (
    DATASETS,
    SPLIT_BY,
    SPLITS,
    Dataset,
    ReferSource,
    Split,
)
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.json_files import Faults, RowFault, missing_file, read_json
from perpo_pipeline.prepare.collect import Prepared, Request, collect
from perpo_pipeline.prepare.entries import Entry, ImageFile
from perpo_pipeline.prepare.fields import integer_at, text_fault
from perpo_pipeline.prepare.plain_pickle import load_plain_pickle
from perpo_pipeline.store.atomic import file_sha256

TRAIN = "train"
EMPTY, EVALUATED = "empty_expression", "image_is_evaluated"


@dataclass(frozen=True, slots=True)
class _Ref:
    """One object of one image with the sentences about it, as (sent_id, sent)."""

    place: str
    ref_id: int
    ann_id: int
    image_id: int
    split: str
    sentences: Sequence[tuple[int, str]]


@dataclass(frozen=True)
class _Instances:
    """Annotation id -> (image id, bbox xywh), image id -> (file name, width, height)."""

    boxes: dict[Any, tuple[Any, Any]]
    images: dict[Any, tuple[Any, Any, Any]]


def read_refer(source: ReferSource, request: Request) -> Prepared:
    """Read the chosen splits of the chosen datasets, one row per sentence.

    The rows' `dataset` is DATASET_SPLIT, e.g. `refcoco_testA`; `source_row` is `ref_id/sent_id`.
    Raises `ConfigError` for missing files and for missing splits, `InputError` with the
    faults of all refs.
    """
    if not source.path.is_dir():
        raise missing_file(source.path)
    splits = _chosen_splits(source, request.split)
    against = _checked_against(source, splits)
    faults = Faults(source.path)
    refs = {
        name: _read_refs(source, name, faults)
        for name in DATASETS
        if name in source.datasets or name in against
    }
    if against:
        faults.check()  # a ref that cannot be read may show an image that is evaluated on
    _check_splits(source, splits, refs, faults)
    evaluated = {ref.image_id for name in against for ref in refs[name] if ref.split != TRAIN}
    reading = _Reading(source, splits, evaluated, request, faults)
    entries = [entry for name in source.datasets for entry in reading.entries(name, refs[name])]
    prepared = collect(
        entries, faults, request, embed=source.embed_images, per_dataset=source.per_dataset
    )
    _check_all_have_entries(reading, entries)
    prepared.facts.update(_facts(source, splits, against, request.instruction))
    prepared.left_out.update(+reading.left_out)
    prepared.counts["found"] = {name: dict(counter) for name, counter in reading.found.items()}
    return prepared


def _chosen_splits(source: ReferSource, prepared: str) -> list[Split]:
    if source.splits is not None:
        return source.splits
    named = [split for split in SPLITS if split == prepared]
    if not named:
        raise ConfigError(
            f"the prepared split '{prepared}' is not one of REFER's {list(SPLITS)}",
            fix=f"name the splits that it consists of: prepare.{prepared}.splits: [val, ...]",
        )
    return named


def _checked_against(source: ReferSource, splits: Sequence[str]) -> list[Dataset]:
    """The datasets whose evaluated images are left out of train."""
    checked = source.leave_out_evaluated
    if TRAIN not in splits or checked is False:
        return []
    names: list[Dataset] = list(DATASETS) if checked is True else list(checked)
    missing = [name for name in names if not source.refs_file(name).is_file()]
    if missing:
        raise ConfigError(
            "train must not hold images that are evaluated on, but the evaluated images of "
            f"{' and '.join(missing)} are unknown, because these files are missing: "
            + ", ".join(str(source.refs_file(name)) for name in missing),
            where=str(source.path),
            fix="add the files (all three datasets share COCO train2014); or name the datasets to "
            "check against, leave_out_evaluated: [refcoco, ...]; or set leave_out_evaluated: false",
        )
    return names


def _read_refs(source: ReferSource, name: Dataset, faults: Faults) -> list[_Ref]:
    path = source.refs_file(name)
    others = [file.name for file in sorted(path.parent.glob("refs(*).p"))]
    if others and path.name not in others:
        raise ConfigError(
            f"there is no {path.name} for {name}, but {' and '.join(others)}",
            where=str(path.parent),
            fix=f"set split_by: {{{name}: ...}}",
        )
    raw = load_plain_pickle(path)
    if not isinstance(raw, list):
        raise InputError(
            "the pickle does not hold a list of refs",
            where=str(path),
            fix="give the file as it was released",
        )
    refs = []
    for number, one in enumerate(raw, start=1):
        place = f"{name}/{path.name}, ref {number}"
        with faults.at(place):
            refs.append(_ref(one, place))
    return refs


def _ref(raw: Any, place: str) -> _Ref:
    if not isinstance(raw, dict):
        raise RowFault("not a dictionary")
    split, sentences = raw.get("split"), raw.get("sentences")
    if split not in SPLITS:
        raise RowFault(f"`split` is {split!r}, not one of {list(SPLITS)}")
    if not isinstance(sentences, list) or not all(isinstance(one, dict) for one in sentences):
        raise RowFault("`sentences` is not a list of sentences")
    pairs = [(integer_at(one, "sent_id"), _sent(one)) for one in sentences]
    ref_id, ann_id, image_id = (integer_at(raw, key) for key in ("ref_id", "ann_id", "image_id"))
    return _Ref(place, ref_id, ann_id, image_id, str(split), pairs)


def _sent(sentence: dict[str, Any]) -> str:
    sent = sentence.get("sent")
    if not isinstance(sent, str):
        raise RowFault(f"`sent` is not text: {sent!r}")
    if fault := text_fault("sent", sent):
        raise RowFault(fault)
    return sent


def _read_instances(path: Path) -> _Instances:
    content = read_json(path)
    try:
        return _Instances(
            {one["id"]: (one["image_id"], one["bbox"]) for one in content["annotations"]},
            {
                one["id"]: (one["file_name"], one["width"], one["height"])
                for one in content["images"]
            },
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            f"this is not REFER's instances.json (annotations with id, image_id and bbox, images "
            f"with id, file_name, width and height): {error!r}",
            where=str(path),
            fix="give the file as it was released",
        ) from error


def _check_splits(
    source: ReferSource, splits: Sequence[str], refs: dict[Dataset, list[_Ref]], faults: Faults
) -> None:
    """Raise `ConfigError` for a split that no dataset has, or a dataset without any of them."""
    there = {name: {ref.split for ref in refs[name]} for name in source.datasets}
    wrong = [
        f"no dataset has a split '{split}'"
        for split in splits
        if not any(split in found for found in there.values())
    ]
    wrong += [
        f"{name} has none of {list(splits)}"
        for name, found in there.items()
        if not found & set(splits)
    ]
    if not wrong:
        return
    faults.check()
    known = "; ".join(
        f"{name} has {[s for s in SPLITS if s in found]}" for name, found in there.items()
    )
    raise ConfigError(
        f"{', '.join(wrong)}: {known}",
        where=str(source.path),
        fix="choose other `splits`, `datasets` or `split_by`",
    )


@dataclass
class _Reading:
    """Turns refs into entries, counting what is found and what is left out."""

    source: ReferSource
    splits: Sequence[str]
    evaluated: set[int]
    request: Request
    faults: Faults
    found: dict[str, Counter[str]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)

    def entries(self, name: Dataset, refs: Sequence[_Ref]) -> Iterator[Entry]:
        """The entries of one dataset's refs, in their order."""
        instances = _read_instances(self.source.instances_file(name))
        for ref in refs:
            if ref.split not in self.splits:
                continue
            dataset = f"{name}_{ref.split}"
            counter = self.found.setdefault(dataset, Counter())
            counter.update(refs=1, expressions=len(ref.sentences))
            if ref.split == TRAIN and ref.image_id in self.evaluated:
                self.left_out[EVALUATED] += len(ref.sentences)
                continue
            with self.faults.at(ref.place):
                yield from self._entries_of(ref, dataset, instances)

    def _entries_of(self, ref: _Ref, dataset: str, instances: _Instances) -> Iterator[Entry]:
        image_id, bbox = instances.boxes.get(ref.ann_id, (None, None))
        if image_id != ref.image_id or image_id not in instances.images:
            raise RowFault(f"instances.json has no annotation {ref.ann_id} of image {ref.image_id}")
        file_name, width, height = instances.images[image_id]
        image = ImageFile(self.source.image_root / str(file_name))
        box = xyxy_from_xywh(bbox)
        for sent_id, sent in ref.sentences:
            if not sent.strip():
                self.left_out[EMPTY] += 1
                continue
            yield Entry(
                place=f"{ref.place}, sentence {sent_id}",
                dataset=dataset,
                source_row=f"{ref.ref_id}/{sent_id}",
                task="grounding",
                image=image,
                prompt=self.request.question(sent),
                gt_box=box,
                size=(width, height),
            )


def _check_all_have_entries(reading: _Reading, entries: Sequence[Entry]) -> None:
    empty = sorted(set(reading.found) - {entry.dataset for entry in entries})
    if empty:
        raise InputError(
            f"no expression of {', '.join(empty)} remains: all their images are evaluated on",
            where=str(reading.source.path),
            fix="choose other datasets, or leave_out_evaluated: false",
        )


def _facts(
    source: ReferSource, splits: Sequence[str], against: Sequence[Dataset], instruction: str
) -> dict[str, Any]:
    names = [name for name in DATASETS if name in source.datasets or name in against]
    files = [source.refs_file(name) for name in names]
    files += [source.instances_file(name) for name in source.datasets]
    return {
        "splits": list(splits),
        "split_by": {name: source.split_by.get(name, SPLIT_BY[name]) for name in names},
        "leave_out_evaluated": list(against),
        "file_sha256": {str(f.relative_to(source.path)): file_sha256(f) for f in sorted(files)},
        "image_root": str(source.image_root.resolve()),
        "instruction": instruction,
    }
