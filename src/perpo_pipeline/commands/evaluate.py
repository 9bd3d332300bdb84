"""`perpo eval` and `perpo compare`."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    Config,
    Debug,
    Model,
    Out,
    Prompts,
    Quiet,
    RunName,
    Scores,
    Variant,
    each_variant,
    open_run,
    print_paths,
)
from perpo_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from perpo_pipeline.run import Run

Rows = Sequence[Mapping[str, Any]]
Json = Annotated[bool, typer.Option("--json", help="print rows as JSON, in full precision")]


def eval_command(
    config: Config = DEFAULT_CONFIG,
    variant: Variant = None,
    prompts: Prompts = None,
    adapter: Annotated[Path | None, typer.Option(help="adapter artifact, not the run's")] = None,
    model: Model = None,
    allow_train_images: Annotated[
        bool,
        typer.Option("--allow-train-images", help="even if the adapter was trained on them"),
    ] = False,
    image_conditioning: Annotated[
        bool, typer.Option("--image-conditioning", help="the true, another and a blank image")
    ] = False,
    best_of_n: Annotated[
        bool, typer.Option("--best-of-n", help="what the best of n = 1..N samples is worth")
    ] = False,
    scores: Scores = None,
    predictions: Annotated[
        Path | None, typer.Option(help="a file of completions made elsewhere; needs no model")
    ] = None,
    task: Annotated[str | None, typer.Option(help="of files: grounding, ocr, vqa or pope")] = None,
    box_format: Annotated[
        str | None, typer.Option(help="of files: llava, qwen3-vl, pixel, ...")
    ] = None,
    frame: Annotated[
        str | None, typer.Option(help="of files: full, crop, pad, resized or resized:WxH")
    ] = None,
    fox_compat: Annotated[
        bool, typer.Option("--fox-compat", help="of files: Fox's swapped order of the two texts")
    ] = False,
    answers: Annotated[Path | None, typer.Option(help="of pope: question_id, text a line")] = None,
    questions: Annotated[Path | None, typer.Option(help="of pope: image, text a line")] = None,
    labels: Annotated[Path | None, typer.Option(help="of pope: image, text, label a line")] = None,
    run: RunName = None,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Evaluate models by greedy decoding, or completions made elsewhere; with 95 % intervals.

    \b
    A run:   its base and adapters (one is refused on images that it was trained on), the
             image-conditioning test (true, shuffled and blank image), the best-of-N curve
    A file:  completions made elsewhere; needs no model, only --task and --out

    \b
    --task      a line of the file (a JSON object)
    grounding   completion, gt_box [x1, y1, x2, y2] px, width, height; with --box-format, --frame
                (and resized [w, h] for --frame resized)
    ocr, vqa    completion, gt_text; ocr also as Fox's list of image, question, label, answer
    pope        three files: --answers, --questions, --labels
    optional    split, dataset (rows of each), id, image (rows of one image go together)

    Example: perpo eval --config configs/demo.yaml --variant perpo

    Example: perpo eval --config configs/demo.yaml --image-conditioning --variant base

    Example: perpo eval --config configs/demo.yaml --best-of-n

    Example: perpo eval --predictions FILE.jsonl --task grounding --box-format llava --frame full
    --out DIR

    Example: perpo eval --task pope --answers A.jsonl --questions Q.jsonl --labels L.json --out DIR
    """
    of_file = {
        "--task": task,
        "--box-format": box_format,
        "--frame": frame,
        "--fox-compat": fox_compat or None,
        "--questions": questions,
        "--labels": labels,
    }
    of_run = {
        "--variant": variant,
        "--prompts": prompts,
        "--adapter": adapter,
        "--model": model,
        "--run": run,
        "--scores": scores,
        "--allow-train-images": allow_train_images or None,
    }
    kind = _one_kind(
        {
            "--predictions": predictions,
            "--answers": answers,
            "--image-conditioning": image_conditioning or None,
            "--best-of-n": best_of_n or None,
        }
    )
    if kind in ("--predictions", "--answers"):
        _refuse(of_run, f"belongs to a run, not to {kind}")
        show, rows = _of_files(
            task, predictions, answers, questions, labels, box_format, frame, fox_compat, out, quiet
        )
        _print_rows(rows, show, as_json)
        return
    _refuse(of_file, "belongs to --predictions or --answers")
    if kind == "--best-of-n":
        others = {k: v for k, v in of_run.items() if k not in ("--run", "--scores")}
        _refuse({**others, "--out": out}, "does not belong to --best-of-n, which looks at scores")
    if scores is not None and kind != "--best-of-n":
        raise ConfigError("--scores belongs to --best-of-n")
    if adapter is not None and variant in (None, "base"):
        raise ConfigError(
            "--adapter is of one trained variant", fix="name it with --variant, e.g. perpo"
        )
    opened = open_run(
        config,
        run=run,
        out=out,
        quiet=quiet,
        settings={"model.id": model, "eval.allow_train_images": allow_train_images or None},
        inputs={"prompts": prompts, "adapter": adapter, "scores": scores},
    )
    if kind == "--best-of-n":
        _best_of_n(opened, as_json)
    elif kind == "--image-conditioning":
        _condition(opened, variant, as_json)
    else:
        _evaluate(opened, variant, as_json)


def compare(
    better: Annotated[Path, typer.Argument(help="predictions, or what `perpo eval --out` wrote")],
    worse: Annotated[Path, typer.Argument(help="those of another model on the same prompts")],
    out: Annotated[Path | None, typer.Option("--out", help="directory to keep the rows in")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare two models prompt by prompt: difference, 95 % interval and p-value.

    McNemar's exact test where answers are right or wrong and share no image, else the bootstrap
    over images.

    Example: perpo compare data/demo/predictions/perpo data/demo/predictions/base
    """
    from perpo_pipeline.evaluate.compare import compare_versions, comparison_table, open_predictions
    from perpo_pipeline.run import Console

    versions = [open_predictions(path) for path in (better, worse)]
    rows = compare_versions(*versions, out=out, console=Console(quiet))
    _print_rows(rows, comparison_table, as_json)


def _evaluate(opened: "Run", variant: str | None, as_json: bool) -> None:
    from perpo_pipeline.evaluate.evaluate_model import evaluate
    from perpo_pipeline.evaluate.printing import metrics_table

    names = each_variant(opened.config.eval_variants(), variant, opened.out)
    versions = [evaluate(opened, name) for name in names]
    if as_json:
        rows = [{"variant": v.variant, **row} for v in versions for row in v.table().to_pylist()]
        _print_rows(rows, metrics_table, as_json)
        return
    for version in versions:
        opened.say(f"{version.variant}:\n{metrics_table(version.table().to_pylist())}")
    print_paths(versions)


def _condition(opened: "Run", variant: str | None, as_json: bool) -> None:
    from perpo_pipeline.evaluate.conditioning import condition, conditioning_table

    models = each_variant(opened.config.eval_models(), variant, opened.out)
    _print_rows([row for m in models for row in condition(opened, m)], conditioning_table, as_json)


def _best_of_n(opened: "Run", as_json: bool) -> None:
    from perpo_pipeline.evaluate.best_of_n import best_of_n_rows, best_of_n_table

    scores = opened.latest("scores", opened.config.sample.split)
    _print_rows(best_of_n_rows(scores), best_of_n_table, as_json)


def _of_files(
    task: str | None,
    predictions: Path | None,
    answers: Path | None,
    questions: Path | None,
    labels: Path | None,
    box_format: str | None,
    frame: str | None,
    fox_compat: bool,
    out: Path | None,
    quiet: bool,
) -> tuple[Callable[[Rows], str], Rows]:
    """How to show the metrics of completions made elsewhere, and their rows."""
    from perpo_pipeline.evaluate.measure_files import evaluate_file, evaluate_pope
    from perpo_pipeline.evaluate.printing import metrics_table
    from perpo_pipeline.run import Console

    if out is None:
        raise ConfigError("no place to write to", fix="give --out DIR")
    if answers is not None:
        if task != "pope" or questions is None or labels is None:
            raise ConfigError(
                "--answers belongs to POPE, which has three files",
                fix="perpo eval --task pope --answers A.jsonl --questions Q.jsonl --labels L.json",
            )
        _refuse(
            {"--box-format": box_format, "--frame": frame, "--fox-compat": fox_compat or None},
            "does not belong to POPE",
        )
        version = evaluate_pope(
            answers, questions=questions, labels=labels, out=out, console=Console(quiet)
        )
        return metrics_table, version.table().to_pylist()
    _refuse({"--questions": questions, "--labels": labels}, "belongs to --answers")
    if task is None or predictions is None:
        raise ConfigError(
            "which task are the predictions of?", fix="give --task grounding, ocr or vqa"
        )
    version = evaluate_file(
        task,
        predictions,
        out=out,
        box_format=box_format,
        frame=frame,
        fox_compat=fox_compat,
        console=Console(quiet),
    )
    return metrics_table, version.table().to_pylist()


def _one_kind(kinds: Mapping[str, Any]) -> str | None:
    given = [flag for flag, value in kinds.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(
            f"{' and '.join(given)} are different evaluations", fix="give one of them"
        )
    return given[0] if given else None


def _refuse(options: Mapping[str, Any], reason: str) -> None:
    given = [flag for flag, value in options.items() if value is not None]
    if given:
        raise ConfigError(f"{', '.join(given)} {reason}", fix="leave it out; see perpo eval --help")


def _print_rows(rows: Rows, table: Callable[[Any], str], as_json: bool) -> None:
    print("\n".join(map(_json_line, rows)) if as_json else table(rows))


def _json_line(row: Mapping[str, Any]) -> str:
    """What is not known is null: JSON has no NaN."""
    known = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
    return json.dumps(known, allow_nan=False)
