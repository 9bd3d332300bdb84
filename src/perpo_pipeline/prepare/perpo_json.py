"""The lists that PerPO's authors released: prompts with their sampled answers and scores.

    [{"image_id", "image_path", "question", "answer", "answers_gen": [...], "iou_scores": [...]}]

`answer` is the truth and `answers_gen` the model's answers, all as texts in the run's
`model.box_format` and `box_frame` (the released lists use two decimals from 0 to 1 of the full
image: `llava` and `full`). The truth becomes `gt_box` in pixels, clipped to the image. It was
rounded when it was written, so our IoU differs a little from `iou_scores`, which are kept.
`image_path` is relative to `image_root`, or to the file's folder.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from perpo_pipeline.answers.boxes import parse_box
from perpo_pipeline.answers.truth import are_numbers
from perpo_pipeline.config.sources import PerpoJsonSource
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.json_files import Faults, Row, RowFault, read_json_list
from perpo_pipeline.prepare.collect import Prepared, ReleasedList, Request, collect
from perpo_pipeline.prepare.entries import Entry, ImageFile
from perpo_pipeline.prepare.fields import text_at, text_fault, without_first_place
from perpo_pipeline.store.atomic import file_sha256


def read_perpo_json(source: PerpoJsonSource, request: Request) -> Prepared:
    """Read the prompts and their lists.

    Raises `InputError` with the faults of all records, `ConfigError` for the frame `resized`,
    because the file does not hold the sizes of resized images.
    """
    if request.box_frame == "resized":
        raise ConfigError(
            "a perpo-json file does not say to which size its images were resized",
            fix="set model.box_frame to the frame of its answers (the released ones: full)",
        )
    root = source.image_root or source.path.parent
    faults = Faults(source.path)
    lists: dict[str, ReleasedList] = {}
    entries = _entries(source, root, faults, request, lists)
    prepared = collect(entries, faults, request, embed=source.embed_images)
    prepared.facts.update(
        file_sha256=file_sha256(source.path),
        image_root=str(root.resolve()),
        box_format=request.box_format,
        box_frame=request.box_frame,
    )
    return replace(prepared, lists=[lists[row] for row in prepared.source_rows])


def _entries(
    source: PerpoJsonSource,
    root: Path,
    faults: Faults,
    request: Request,
    lists: dict[str, ReleasedList],
) -> Iterator[Entry]:
    for number, record in read_json_list(source.path, faults):
        place = f"record {number}"
        with faults.at(place):
            question = without_first_place(text_at(record, "question"))
            if not question:
                raise RowFault("the question is empty")
            released = _list_of(record)
            entry = Entry(
                place=place,
                dataset=source.path.stem,
                source_row=str(number),
                task="grounding",
                image=ImageFile(root / text_at(record, "image_path")),
                prompt=question,
                gt_box=_Truth(text_at(record, "answer"), request),
            )
            lists[entry.source_row] = released
            yield entry


def _list_of(record: Row) -> ReleasedList:
    answers, scores = record.get("answers_gen"), record.get("iou_scores")
    if not isinstance(answers, list) or not answers:
        raise RowFault("`answers_gen` is not a list of answers")
    if not all(isinstance(answer, str) for answer in answers):
        raise RowFault("`answers_gen` holds an answer that is not text")
    for answer in answers:
        if fault := text_fault("answers_gen", answer):
            raise RowFault(fault)
    if not isinstance(scores, list) or len(scores) != len(answers):
        count = len(scores) if isinstance(scores, list) else "no"
        raise RowFault(f"the record has {len(answers)} answers and {count} `iou_scores`")
    for score in scores:
        if not are_numbers([score], 1) or not 0 <= score <= 1:
            raise RowFault(f"`iou_scores` holds {score!r}, which is no number from 0 to 1")
    return ReleasedList(answers, [float(score) for score in scores])


@dataclass(frozen=True)
class _Truth:
    """A box as text, converted to pixels when the image's size is known."""

    answer: str
    request: Request

    def __call__(self, width: int, height: int) -> list[float]:
        name, frame = self.request.box_format, self.request.box_frame
        box = parse_box(self.answer, name, frame=frame, image_size=(width, height))
        if box is None:
            raise RowFault(
                f"`answer` is not a box in the format {name}, frame {frame}: {self.answer!r}"
            )
        x1, y1, x2, y2 = box
        return [max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))]
