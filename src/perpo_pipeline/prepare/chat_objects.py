"""ms-swift's grounding rows: `<ref-object>` and `<bbox>` in the turns, and `objects` beside them.

    {"messages": [{"role": "user", "content": "<image>Find the <ref-object>."},
                  {"role": "assistant", "content": "<bbox><bbox>"}], "images": ["x.jpg"],
     "objects": {"ref": ["sheep"], "bbox": [[90.9, 160.8, 135, 212.8], [360.9, 480.8, 495, 532.8]]}}

The n-th `<ref-object>` of all turns is the n-th of `ref`, the n-th `<bbox>` the n-th of `bbox`.
`bbox_type` is `real` (pixels of the image, the default) or `norm1` (0 to 1); four numbers are two
corners, two are a point. `image_id` names the image of each box, from 0 (all 0 without it). Source:
docs/source_en/Customization/Custom-dataset.md, 'Grounding' (modelscope/ms-swift at 3602360).
"""

from dataclasses import dataclass
from typing import Any

from perpo_pipeline.answers.truth import are_numbers
from perpo_pipeline.json_files import Row, RowFault
from perpo_pipeline.vlm.image_place import ASSISTANT

REF, BBOX = "<ref-object>", "<bbox>"
REAL, NORM1 = "real", "norm1"

Turns = list[tuple[str, str]]


@dataclass(frozen=True)
class Objects:
    """The turns with their references written out, and the boxes of the last turn.

    `boxes` are xyxy in pixels, or from 0 to 1 (`is_norm`); `points` are x, y. `image` is the place
    of their image among the row's; None where there are none, or `image_id` is not given.
    """

    turns: Turns
    boxes: list[list[float]]
    points: list[list[float]]
    is_norm: bool
    image: int | None

    @property
    def are_there(self) -> bool:
        """Whether there is a box or a point."""
        return bool(self.boxes or self.points)


def read_objects(turns: Turns, objects: Any) -> Objects:
    """Raises `RowFault` for the first fault."""
    if not isinstance(objects, dict):
        raise RowFault(f"`objects` is no object with `ref` and `bbox`: {objects!r}")
    refs, boxes = (_list_at(objects, key) for key in ("ref", "bbox"))
    kind = objects.get("bbox_type") or REAL
    if kind not in (REAL, NORM1):
        raise RowFault(f"`objects.bbox_type` is {kind!r}; {REAL} and {NORM1} are read")
    _check_counts(turns, refs, boxes)
    earlier = [text for _, text in (turns[:-1] if turns[-1][0] == ASSISTANT else turns)]
    if any(BBOX in text for text in earlier):
        raise RowFault(
            f"{BBOX} stands before the answer; write those boxes as the model reads them"
        )
    for ref in refs:
        if not isinstance(ref, str):
            raise RowFault(f"`objects.ref` holds {ref!r}, which is no text")
    waiting = iter(refs)
    turns_now = [(role, _filled(text, waiting)) for role, text in turns]
    flat = [box for box in boxes if are_numbers(box, 4) or are_numbers(box, 2)]
    if len(flat) < len(boxes):
        wrong = next(box for box in boxes if box not in flat)
        raise RowFault(f"`objects.bbox` holds {wrong!r}, which is neither four nor two numbers")
    return Objects(
        turns_now,
        [[float(v) for v in box] for box in flat if len(box) == 4],
        [[float(v) for v in box] for box in flat if len(box) == 2],
        kind == NORM1,
        _image_of(objects, len(boxes)),
    )


def _list_at(objects: Row, key: str) -> list[Any]:
    found = objects.get(key)
    if found is None:
        return []
    if not isinstance(found, list):
        raise RowFault(f"`objects.{key}` is no list: {found!r}")
    return found


def _check_counts(turns: Turns, refs: list[Any], boxes: list[Any]) -> None:
    text = "".join(text for _, text in turns)
    for mark, key, found in ((REF, "ref", refs), (BBOX, "bbox", boxes)):
        if text.count(mark) != len(found):
            raise RowFault(
                f"{mark} is in the turns {_times(text.count(mark))}, and `objects.{key}` has "
                f"{len(found)}"
            )


def _filled(text: str, refs: Any) -> str:
    """The text with its next references in the places for them."""
    first, *others = text.split(REF)
    return first + "".join(next(refs) + other for other in others)


def _image_of(objects: Row, count: int) -> int | None:
    """The one image that all boxes are of; None if nothing says which."""
    found = objects.get("image_id")
    if found is None or not count:
        return None
    if not isinstance(found, list) or len(found) != count or not are_numbers(found, count):
        raise RowFault(f"`objects.image_id` is no list with one number per box: {found!r}")
    if any(number != int(number) for number in found):
        raise RowFault(f"`objects.image_id` holds a number that is not whole: {found!r}")
    if len({*found}) > 1:
        raise RowFault(f"the boxes are of several images (`objects.image_id` {found}); one is read")
    return int(found[0])


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
