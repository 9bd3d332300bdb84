"""Labelled boxes of an image -> prompts that ask for a label: COCO, Label Studio and YOLO.

`per: label` makes one prompt for each label of an image, with all its boxes (`gt_boxes`);
`per: box` one for each box (`gt_box`). The label is the expression and the extra column `category`.
A bad box makes the prompt of its label bad, whose truth would not be whole.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from perpo_pipeline.config.sources import CocoSource, LabelStudioSource, YoloSource
from perpo_pipeline.json_files import Faults, Row
from perpo_pipeline.prepare.collect import Prepared, Request, collect
from perpo_pipeline.prepare.entries import Entry, ImageData
from perpo_pipeline.prepare.fields import extra_text
from perpo_pipeline.store.atomic import file_sha256

CATEGORY = "category"


@dataclass(frozen=True, slots=True)
class LabelledBox:
    """One box as its file has it; `key` is its own name in the dataset, `extra` other columns.

    `fault` says why it cannot be used, if it cannot.
    """

    label: str
    box: Any
    key: str
    place: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image with its boxes; `size` is the (width, height) that the file claims."""

    image: ImageData
    key: str
    place: str
    boxes: Sequence[LabelledBox]
    size: tuple[Any, Any] | None = None


def entries_of(
    found: LabelledImage,
    per: Literal["label", "box"],
    dataset: str,
    request: Request,
    faults: Faults,
) -> Iterator[Entry]:
    """The prompts of one image, in the order of its boxes; bad boxes are faults."""
    for box in found.boxes:
        if box.fault:
            faults.add(box.place, box.fault, "bad_truth")
    bad = {box.label for box in found.boxes if box.fault}
    if per == "box":
        for box in found.boxes:
            if not box.fault:
                truth = {"gt_box": box.box}
                yield _entry(found, box, dataset, request, box.place, box.key, truth)
        return
    by_label: dict[str, list[LabelledBox]] = {}
    for box in found.boxes:
        by_label.setdefault(box.label, []).append(box)
    for label, boxes in by_label.items():
        if label not in bad:
            place, key = f"{found.place}, label {label!r}", f"{found.key}/{label}"
            truth = {"gt_boxes": [box.box for box in boxes]}
            yield _entry(found, boxes[0], dataset, request, place, key, truth)


def collect_labelled(
    entries: Iterable[Entry],
    source: CocoSource | LabelStudioSource | YoloSource,
    root: Path,
    request: Request,
    faults: Faults,
    counts: dict[str, int],
    what: str = "images",
) -> Prepared:
    """The prompts of the entries, which count what they find in `counts` as they are read.

    `what` names the things with boxes in `counts`: <what> and <what>_without_boxes. Raises
    `InputError` with the faults of all entries.
    """
    prepared = collect(
        entries,
        faults,
        request,
        embed=source.embed_images,
        per_dataset=source.per_dataset,
        found=counts,
    )
    prepared.facts.update(
        file_sha256=file_sha256(source.path),
        image_root=str(root.resolve()),
        instruction=request.instruction,
    )
    prepared.counts["found"] = dict(counts)
    if without := counts.get(f"{what}_without_boxes"):
        prepared.notes["without_boxes"] = (
            f"{without:,} of {counts[what]:,} {what} without a box that is read: they make no "
            "prompt"
        )
    return prepared


def _entry(
    found: LabelledImage,
    box: LabelledBox,
    dataset: str,
    request: Request,
    place: str,
    key: str,
    truth: Row,
) -> Entry:
    return Entry(
        place=place,
        dataset=dataset,
        source_row=key,
        task="grounding",
        image=found.image,
        prompt=request.question(box.label),
        size=found.size,
        extra=extra_text({CATEGORY: box.label, **box.extra}),
        **truth,
    )
