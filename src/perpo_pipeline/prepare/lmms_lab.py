"""The Parquet files of lmms-lab/RefCOCO (RefCOCOplus, RefCOCOg), with the images inside.

    question_id, image {bytes, path}, question, answer [expression, ...], segmentation,
    bbox [x, y, w, h], file_name

One row is one expression of `answer`; `question` is not used. Boxes are xywh in pixels of the full
image, and become xyxy. Files are named SPLIT-00000-of-00002-....parquet; a row's `dataset` is
DATASET_SPLIT. The split `val` holds the official val and Google's val together, so its metrics
cannot be compared with papers; the run prints that.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from perpo_pipeline.answers.truth import xyxy_from_xywh
from perpo_pipeline.config.sources import LmmsLabSource
from perpo_pipeline.errors import InputError
from perpo_pipeline.json_files import Faults, Row, RowFault
from perpo_pipeline.prepare.arrow_files import (
    HeldImages,
    Shard,
    ShardImage,
    open_shards,
    shard_rows,
)
from perpo_pipeline.prepare.collect import Prepared, Request, collect
from perpo_pipeline.prepare.entries import Entry
from perpo_pipeline.prepare.fields import text_at
from perpo_pipeline.store.atomic import file_sha256

_SHARD = re.compile(r"(.+?)-[0-9]{5}-of-[0-9]{5}.*")
_FIX = "give a whole Parquet file of lmms-lab/RefCOCO, a folder of them or a pattern"
_VAL_NOTE = (
    "lmms-lab's val holds the official val and Google's val together: its metrics cannot be "
    "compared with papers (source: refer has the official val)"
)


def read_lmms_lab(source: LmmsLabSource, request: Request) -> Prepared:
    """Read the files; image bytes are read only when used. `source_row` is FILE/ROW/ANSWER.

    Raises `ConfigError` if no file is found, `InputError` with the faults of all rows.
    """
    shards = open_shards(source.files(), source.path, fix=_FIX)
    faults = Faults(source.path)
    counts: dict[str, Counter[str]] = {}
    entries: list[Entry] = []
    images = HeldImages()
    for shard in shards:
        dataset = f"{source.dataset}_{_split_of(shard.path)}"
        counter = counts.setdefault(dataset, Counter())
        entries += _entries(shard, images, dataset, counter, faults, request)
    # One thread reads the rows in order, because only one row group is kept in memory.
    prepared = collect(entries, faults, request, per_dataset=source.per_dataset, threads=1)
    prepared.facts.update(
        file_sha256={shard.name: file_sha256(shard.path) for shard in shards},
        instruction=request.instruction,
    )
    prepared.counts["found"] = {name: dict(counter) for name, counter in counts.items()}
    if any(name.endswith("_val") for name in counts):
        prepared.notes["val"] = _VAL_NOTE
    return prepared


def _split_of(file: Path) -> str:
    shard = _SHARD.fullmatch(file.stem)
    return shard[1] if shard else file.stem


def _entries(
    shard: Shard,
    images: HeldImages,
    dataset: str,
    counter: Counter[str],
    faults: Faults,
    request: Request,
) -> Iterator[Entry]:
    for image, record in _rows(shard, images):
        place = f"{shard.name}, row {image.number}"
        with faults.at(place):
            answers = record["answer"]
            if not isinstance(answers, list) or not answers:
                raise RowFault("`answer` is not a list of expressions")
            counter.update(refs=1, expressions=len(answers))
            box = xyxy_from_xywh(record["bbox"])
            for index, answer in enumerate(answers):
                yield Entry(
                    place=f"{place}, answer {index + 1}",
                    dataset=dataset,
                    source_row=f"{shard.name}/{image.number}/{index}",
                    task="grounding",
                    image=image,
                    prompt=request.question(text_at({"answer": answer}, "answer")),
                    gt_box=box,
                )


def _rows(shard: Shard, images: HeldImages) -> Iterator[tuple[ShardImage, Row]]:
    """Each row with its image; raises `InputError` if the file has another layout."""
    missing = {"image", "answer", "bbox"} - set(shard.schema.names)
    if missing:
        raise InputError(
            f"the file has no column {', '.join(sorted(missing))}",
            where=str(shard.path),
            fix=_FIX,
        )
    return shard_rows(shard, "image", images, columns=("answer", "bbox"), fix=_FIX)
