"""`perpo prepare`: one split of the run's data -> the prompts artifact.

Released lists (`perpo-json`) also become samples and scores. A new layout is a model in
config/sources.py and a reader in `READERS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from perpo_pipeline.config.evaluations import refuse_dataset_called_all
from perpo_pipeline.config.fingerprints import STAGE_VERSIONS, counted_settings
from perpo_pipeline.config.sources import SeveralSources, Source, list_sources
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.json_files import Row
from perpo_pipeline.prepare.coco import read_coco
from perpo_pipeline.prepare.collect import Prepared, Request
from perpo_pipeline.prepare.fox import read_fox
from perpo_pipeline.prepare.label_studio import read_label_studio
from perpo_pipeline.prepare.lmms_lab import read_lmms_lab
from perpo_pipeline.prepare.messages import read_messages
from perpo_pipeline.prepare.pages import read_pages
from perpo_pipeline.prepare.perpo_json import read_perpo_json
from perpo_pipeline.prepare.pictures import put_together, with_other_pictures
from perpo_pipeline.prepare.preview import Sheet, make_sheet
from perpo_pipeline.prepare.prompts import read_prompts
from perpo_pipeline.prepare.rec import read_rec
from perpo_pipeline.prepare.refer import read_refer
from perpo_pipeline.prepare.released import write_lists
from perpo_pipeline.prepare.several import join_sources, refuse_repeated
from perpo_pipeline.prepare.tables import read_table
from perpo_pipeline.prepare.testbed import read_testbed
from perpo_pipeline.prepare.yolo import read_yolo
from perpo_pipeline.run import Run, make
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.schemas import LEFT_OUT
from perpo_pipeline.store.writing import Recipe, Writer

STAGE_VERSION = STAGE_VERSIONS["prompts"]
PROMPTS_PER_PART = 1024

READERS: dict[str, Callable[[Any, Request], Prepared]] = {
    "testbed": read_testbed,
    "jsonl": read_table,
    "json": read_table,
    "csv": read_table,
    "tsv": read_table,
    "parquet": read_table,
    "datasets": read_table,
    "refer": read_refer,
    "lmms-lab": read_lmms_lab,
    "rec-jsonl": read_rec,
    "shikra": read_rec,
    "minigpt4": read_rec,
    "coco": read_coco,
    "label-studio": read_label_studio,
    "yolo": read_yolo,
    "fox": read_fox,
    "pages": read_pages,
    "messages": read_messages,
    "perpo-json": read_perpo_json,
    "prompts": read_prompts,
}
"""The reader of each layout in config/sources.py."""


def prepare(run: Run, split: str, sheets: list[Sheet] | None = None) -> Version:
    """Write the prompts of one split, and the samples and scores of a source that has answers.

    Returns the prompts; raises `PerpoError` on a bad source. Under --out the three artifacts of a
    source with answers get one folder each. `sheets` gets the split's part of a preview.
    """
    source = run.config.prepare.get(split)
    if source is None:
        raise ConfigError(
            f"no split '{split}' under `prepare`", fix=f"choose one of {list(run.config.prepare)}"
        )
    prepared = _read(run, split, source)
    if prepared.doubt is not None:
        run.say(f"prepare {split}: warning: {prepared.doubt}")
    prompts = _write_all(run, split, prepared, source)
    if sheets is not None:
        sheets.append(make_sheet(prompts, run.config.seed, prepared.doubt, run.progress))
    return prompts


def _write_all(
    run: Run, split: str, prepared: Prepared, source: Source | SeveralSources
) -> Version:
    if prepared.lists is None:
        return _write_prompts(run, split, prepared, source, run.out)
    prompts = _write_prompts(run, split, prepared, source, run.out and run.out / "prompts")
    write_lists(run, split, prompts, prepared.lists, prepared.facts, run.out)
    return prompts


@dataclass(frozen=True)
class Survey:
    """How many prompts a split would have, and the rows of some of them."""

    prompts: int
    rows: list[Row]


def survey(run: Run, split: str, at_most: int) -> Survey:
    """Count a split's prompts without making it; opens the images of `at_most` prompts.

    All rows are read, and faults are raised as `prepare` raises them; a row whose image was not
    opened may still be faulty.
    """
    surveys = [_survey(run, split, one, at_most) for one in list_sources(run.config.prepare[split])]
    return Survey(sum(one.prompts for one in surveys), [row for one in surveys for row in one.rows])


def _survey(run: Run, split: str, source: Any, at_most: int) -> Survey:
    request = replace(_request(run, split, source), survey=at_most)
    prepared = READERS[source.source](source, request)
    every = len(prepared.rows)
    spread = [i * every // at_most for i in range(at_most)] if every > at_most else range(every)
    rows = [prepared.rows[i] for i in spread]
    if (images := _images_per_prompt(source)) is not None:
        rows = list(put_together(rows, images, run.config.seed))
    return Survey(prepared.counts.get("prompts", every), rows)


def _read(run: Run, split: str, source: Source | SeveralSources) -> Prepared:
    """Read a source; those of a list one after the other, as one."""
    sources, seed = list_sources(source), run.config.seed
    read = [
        with_other_pictures(
            READERS[one.source](one, _request(run, split, one)), _images_per_prompt(one), seed
        )
        for one in sources
    ]
    return join_sources(sources, read) if isinstance(source, SeveralSources) else read[0]


def _images_per_prompt(source: Any) -> int | None:
    return getattr(source, "images_per_prompt", None)


def _request(run: Run, split: str, source: Source) -> Request:
    def progress(items: Any, what: str, total: int) -> Any:
        return run.progress(items, f"prepare {split}", total, what)

    model = run.config.model
    return Request(
        split,
        model.box_format,
        model.box_frame,
        run.config.seed,
        box=getattr(source, "box", "xyxy"),
        unit=getattr(source, "unit", "px"),
        leave_out_bad_rows=getattr(source, "leave_out_bad_rows", False),
        settings=type(source).model_fields,
        progress=progress,
    )


def _write_prompts(
    run: Run, split: str, prepared: Prepared, source: Source | SeveralSources, out: Path | None
) -> Version:
    settings = counted_settings("prompts", source, {"split": split, **prepared.facts})
    notes = {**_path_of(source), **prepared.notes}
    recipe = Recipe("prompts", split, "prepare", STAGE_VERSION, settings, notes=notes)
    left_out = {
        "per_dataset": prepared.facts.get("left_out_by_per_dataset", 0),
        **prepared.left_out,
    }

    def work(writer: Writer) -> Mapping[str, Any]:
        for note in prepared.notes.values():
            run.say(f"prepare {split}: {note}")
        dropped = {reason: count for reason, count in left_out.items() if count}
        if dropped:
            run.say(f"prepare {split}: left out {_list_reasons(dropped)}")
        if prepared.bad_rows:
            first = prepared.bad_rows[0]
            run.say(
                f"prepare {split}: for example {first['place']}: {first['what']} "
                f"(all: {writer.path}/{LEFT_OUT.name}-*.parquet)"
            )
            writer.write_part(0, list(prepared.bad_rows), table=LEFT_OUT.name)
        rows = prepared.rows
        starts = range(0, len(rows), PROMPTS_PER_PART)
        for index, start in enumerate(run.progress(starts, f"prepare {split}", unit="parts")):
            if not writer.has_part(index):
                chunk = [rows[i] for i in range(start, min(start + PROMPTS_PER_PART, len(rows)))]
                writer.write_part(index, chunk)
        names = (part["dataset"].unique() for part in writer.read_rows(["dataset"]))
        datasets = {name for part in names for name in part.to_pylist()}
        refuse_dataset_called_all(datasets, split, f"prepare.{split}")
        if isinstance(source, SeveralSources):
            refuse_repeated(writer, split)
        return {"prompts": len(rows), "left_out": dropped, **prepared.counts}

    return make(run, recipe, work, out=out)


def _path_of(source: Source | SeveralSources) -> dict[str, Any]:
    """Where the dataset is, as a note: the `place` of a prompt is relative to it."""
    if isinstance(source, SeveralSources):
        return {"paths": [_path_of(one).get("path") for one in source.of]}
    path: Path | None = getattr(source, "path", None)
    return {} if path is None else {"path": str(path.resolve())}


def _list_reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())
