"""`perpo prepare`."""

from pathlib import Path
from typing import Annotated

import typer

from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    Config,
    Debug,
    Out,
    Quiet,
    RunName,
    each_variant,
    open_run,
    print_paths,
)


def prepare(
    source: Annotated[
        str | None, typer.Argument(help="the layout, as above; default: the file's")
    ] = None,
    path: Annotated[Path | None, typer.Argument(help="the file or folder, as above")] = None,
    config: Config = DEFAULT_CONFIG,
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant",
            help="the split to prepare; default: all of the file's, or train if a SOURCE is given",
        ),
    ] = None,
    image_root: Annotated[Path | None, typer.Option(help="folder of the images")] = None,
    per_dataset: Annotated[
        int | None, typer.Option(help="so many rows of each dataset, chosen by the seed")
    ] = None,
    datasets: Annotated[
        str | None, typer.Option(help="of refer: refcoco,refcoco+,refcocog (all)")
    ] = None,
    splits: Annotated[
        str | None, typer.Option(help="of refer: train,val,testA,testB,test (that of --variant)")
    ] = None,
    split_by: Annotated[
        str | None, typer.Option(help="of refer, e.g. refcocog=google (unc, unc, umd)")
    ] = None,
    keep_evaluated: Annotated[
        bool, typer.Option("--keep-evaluated", help="of refer: do not leave evaluated images out")
    ] = False,
    task: Annotated[str | None, typer.Option(help="of jsonl rows that name none")] = None,
    num_prompts: Annotated[int | None, typer.Option(help="how many to render (testbed)")] = None,
    run: RunName = None,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Turn a dataset into prompts: image, instruction and truth, with stable keys.

    All boxes are read in pixels of the full image; perpo-json alone has them as text in the run's
    box_format and box_frame. They become xyxy pixels.

    \b
    SOURCE     PATH                                                        boxes
    testbed    (none: scenes are rendered)                                 -
    jsonl      a line: image, prompt or expression, task, gt_box or gt_... xyxy px
    refer      ROOT with refcoco/, refcoco+/, refcocog/: refs(...).p and
               instances.json                                              xywh px
    lmms-lab   Parquet files of lmms-lab/RefCOCO: file, folder, pattern    xywh px
    rec-jsonl  Qwen-VL, InternVL: image, sent, bbox, height, width a line  xyxy px
    shikra     Shikra: img_path, expression, bbox a line                   xyxy px
    minigpt4   MiniGPT-4: a list of img_id, sents, bbox, height, width     xywh px
    fox        Fox's pages: a list of image, conversations                 none: text
    perpo-json PerPO's released lists, which become samples and scores,
               too: image_path, question, answer, answers_gen, iou_scores  text

    Example: perpo prepare --config configs/demo.yaml --variant train

    Example: perpo prepare refer ROOT --variant train --per-dataset 1000 --image-root DIR

    Example: perpo prepare jsonl my/train.jsonl --task grounding --variant train
    """
    from perpo_pipeline.prepare.prepare_prompts import prepare as prepare_stage
    from perpo_pipeline.prepare.settings import source_settings

    split = "train" if variant is None and source is not None else variant
    settings = source_settings(
        split,
        source=source,
        path=path,
        image_root=image_root,
        per_dataset=per_dataset,
        datasets=datasets,
        splits=splits,
        split_by=split_by,
        keep_evaluated=keep_evaluated,
        task=task,
        num_prompts=num_prompts,
    )
    opened = open_run(config, run=run, out=out, quiet=quiet, settings=settings)
    chosen = each_variant(list(opened.config.prepare), split, out)
    print_paths([prepare_stage(opened, name) for name in chosen])
