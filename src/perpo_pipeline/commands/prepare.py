"""`perpo prepare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    Config,
    Debug,
    Out,
    Quiet,
    RunName,
    Set,
    choose_names,
    open_run,
)
from perpo_pipeline.commands.output import print_paths
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.suggestions import did_you_mean

if TYPE_CHECKING:
    from perpo_pipeline.config.overrides import Override

_BY_SUFFIX = {
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pdf": "pages",
}  # the likeliest layout


def prepare(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE", help="layout of the dataset, see the table; default: the file's"
        ),
    ] = None,
    path: Annotated[
        Path | None,
        typer.Argument(metavar="PATH", help="file or folder of the dataset, see the table"),
    ] = None,
    config: Config = DEFAULT_CONFIG,
    split: Annotated[
        str | None,
        typer.Option(
            help="name of the split to prepare; default: every split of the run's file, or train "
            "if SOURCE is given"
        ),
    ] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="folder of the images (prepare.SPLIT.image_root)")
    ] = None,
    per_dataset: Annotated[
        int | None,
        typer.Option(
            help="rows to take from each dataset, drawn with the seed (prepare.SPLIT.per_dataset)"
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="task of rows that name none: grounding, ocr or vqa (prepare.SPLIT.task)"
        ),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="also write a page that shows some prompts, with their truths drawn on the images",
        ),
    ] = None,
    sets: Set = None,
    run: RunName = None,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Turn a dataset into prompts: image, instruction and truth.

    Each prompt has a stable key. Boxes are read in pixels of the full image and become xyxy pixels.
    Layouts with "box, unit" hold them as prepare.SPLIT.box and prepare.SPLIT.unit say (xyxy px
    unless set), under the names in prepare.SPLIT.columns. Only perpo-json has boxes as text, in
    the run's box_format and box_frame.

    \b
    SOURCE     PATH                                                        boxes
    testbed    (none: scenes or pages are rendered)                        -
    jsonl      JSON lines: image, prompt or expression, task, gt_...       box, unit
    json       one JSON list of such objects                               box, unit
    csv        table with a header; a box: a JSON list or four columns     box, unit
    tsv        the same with tabs                                          box, unit
    parquet    such a table: file, folder, pattern; images may be inside   box, unit
    datasets   folder of one split that `save_to_disk` wrote               box, unit
    refer      ROOT with refcoco/, refcoco+/, refcocog/: refs(...).p and
               instances.json                                              xywh px
    lmms-lab   Parquet files of lmms-lab/RefCOCO: file, folder, pattern    xywh px
    rec-jsonl  Qwen-VL, InternVL lines: image, sent, bbox, height, width   xyxy px
    shikra     Shikra lines: img_path, expression, bbox                    xyxy px
    minigpt4   MiniGPT-4 list: img_id, sents, bbox, height, width          xywh px
    coco       COCO's instances_*.json: images, annotations, categories    xywh px
    label-studio JSON export of Label Studio with RectangleLabels          per cent
    yolo       YOLO's data.yaml, with images/ and labels/                  cxcywh norm
    fox        list of Fox's pages: image, conversations                   none: text
    pages      folder with page.png beside page.txt, PDFs, or one PDF      none: text
    messages   chats: JSON, Parquet, `datasets`: messages, conversations   box_format
    perpo-json PerPO's released lists, which also become samples and
               scores: image_path, question, answer, answers_gen,
               iou_scores                                                  text
    prompts    what another run has prepared: data/RUN/prompts/SPLIT       -

    Example: perpo prepare --config configs/demo.yaml --split train

    Example: perpo prepare jsonl my/train.jsonl --task grounding --split train

    Example: perpo prepare csv boxes.csv --task grounding --set prepare.train.box=xywh

    Example: perpo prepare --config configs/demo.yaml --preview data/demo/prompts.html

    Example: perpo prepare coco instances_val.json --image-root val2017 --split test

    Example: perpo prepare pages scans --split train

    Example: perpo prepare refer ROOT --image-root DIR --set prepare.train.datasets=[refcocog]
    """
    from perpo_pipeline.prepare.prepare_prompts import prepare as prepare_stage
    from perpo_pipeline.prepare.preview import Sheet, check_preview, write_preview
    from perpo_pipeline.prepare.token_counts import token_lines
    from perpo_pipeline.vlm.inputs import check_image_limits

    if preview is not None:
        check_preview(preview)
    split = "train" if split is None and source is not None else split
    flags = {
        "PATH": ("path", path and str(path)),
        "--image-root": ("image_root", image_root and str(image_root)),
        "--per-dataset": ("per_dataset", per_dataset),
        "--task": ("task", task),
    }
    opened = open_run(
        config,
        sets,
        run=run,
        out=out,
        quiet=quiet,
        settings=_source_settings(split, source, flags),
    )
    chosen = choose_names(list(opened.config.prepare), split, out, option="--split", what="split")
    sheets: list[Sheet] | None = None if preview is None else []
    check_image_limits(opened.config.model, download=False)
    made = [prepare_stage(opened, name, sheets) for name in chosen]
    print_paths(made)
    if not quiet:
        for prompts in made:
            for line in token_lines(opened, prompts):
                opened.say(f"prepare {prompts.variant}: {line}")
    if preview is not None:
        write_preview(preview, sheets or [], opened.config.run)
        opened.say(f"prepare: the preview is {preview}")


def _source_settings(
    split: str | None, source: str | None, flags: dict[str, tuple[str, Any]]
) -> "list[Override]":
    """Settings of the split: a new source if one is named, otherwise single values of the file's.

    Raises `ConfigError` for an unknown source, and for options without a split.
    """
    from perpo_pipeline.config.overrides import Override
    from perpo_pipeline.config.sources import SOURCE_NAMES

    given = {option: (key, value) for option, (key, value) in flags.items() if value is not None}
    if source is not None and source not in SOURCE_NAMES:
        raise ConfigError(
            f"there is no source '{source}'{did_you_mean(source, SOURCE_NAMES)}",
            fix=_fix_of_source(source, ", ".join(SOURCE_NAMES)),
        )
    if given and split is None:
        raise ConfigError(
            f"{', '.join(given)}: these options need exactly one split",
            fix="choose it with --split",
        )
    place = ("prepare", str(split))
    whole = [] if source is None else [Override(place, {"source": source}, "--split")]
    return whole + [
        Override((*place, key), value, option, named_by="--split")
        for option, (key, value) in given.items()
    ]


def _fix_of_source(source: str, known: str) -> str:
    """What to do about a word that is no source; often it is the path."""
    if not (Path(source).exists() or "/" in source or Path(source).suffix):
        return f"choose one of {known}"
    layout = _BY_SUFFIX.get(Path(source).suffix)
    if layout is None:
        return f"give the source first: perpo prepare SOURCE {source}, with one of {known}"
    return f"give the source first: perpo prepare {layout} {source}"
