"""Labelled boxes of an image -> prompts that ask for a label: COCO, Label Studio and YOLO.

`per: label` makes one prompt for each label of an image, with all its boxes (`gt_boxes`);
`per: box` one for each box (`gt_box`). The label is the expression and the extra column `category`.
A bad box makes the prompt of its label bad, whose truth would not be whole.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from perpo_pipeline.json_files import Faults, Row
from perpo_pipeline.prepare.collect import Prepared, Request
from perpo_pipeline.prepare.entries import Entry, ImageData
from perpo_pipeline.prepare.fields import extra_text

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


def note_without_boxes(prepared: Prepared, what: str, without: int, of: int) -> None:
    """Note how many images (or tasks) make no prompt, because they have no box."""
    if without:
        prepared.notes["without_boxes"] = (
            f"{without:,} of {of:,} {what} without a box that is read: they make no prompt"
        )


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
