"""Fox's page OCR: one JSON list of pages, each with a question and its text.

    [{"image": "page.png", "conversations": [{"from": "human", "value": "<image>\\nOCR: ..."},
                                             {"from": "gpt", "value": "the page's text"}]}]

The task is `ocr`: rows have no boxes. The text is kept as it is (Fox normalises nothing). A
leading `<image>` is removed from the question: the image comes first by default.
"""

from collections.abc import Iterator
from pathlib import Path

from perpo_pipeline.config.sources import FoxSource
from perpo_pipeline.json_files import Faults, Row, RowFault, read_json_list
from perpo_pipeline.prepare.collect import Prepared, Request, collect
from perpo_pipeline.prepare.entries import Entry, ImageFile
from perpo_pipeline.prepare.fields import text_at, without_first_place
from perpo_pipeline.store.atomic import file_sha256


def read_fox(source: FoxSource, request: Request) -> Prepared:
    """Read Fox's pages; raises `InputError` with the faults of all records."""
    root = source.image_root or source.path.parent
    faults = Faults(source.path)
    prepared = collect(_entries(source, root, faults), faults, request, embed=source.embed_images)
    prepared.facts.update(file_sha256=file_sha256(source.path), image_root=str(root.resolve()))
    return prepared


def _entries(source: FoxSource, root: Path, faults: Faults) -> Iterator[Entry]:
    for number, record in read_json_list(source.path, faults):
        place = f"record {number}"
        with faults.at(place):
            question, text = _turns(record)
            yield Entry(
                place=place,
                dataset=source.path.stem,
                source_row=str(number),
                task="ocr",
                image=ImageFile(root / text_at(record, "image")),
                prompt=question,
                gt_text=text,
            )


def _turns(record: Row) -> tuple[str, str]:
    """The one question and its answer."""
    turns = record.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowFault("`conversations` is not a list of turns")
    speakers = [turn.get("from") for turn in turns]
    if speakers != ["human", "gpt"]:
        raise RowFault(
            f"`conversations` is not one turn of human and one of gpt, but of {speakers}"
        )
    question = without_first_place(text_at(turns[0], "value"))
    if not question:
        raise RowFault("the question is empty")
    return question, text_at(turns[1], "value")
