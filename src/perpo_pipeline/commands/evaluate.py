"""`perpo eval`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    Config,
    Debug,
    Json,
    Model,
    Out,
    Prompts,
    Quiet,
    RunName,
    Set,
    choose_names,
    open_run,
)
from perpo_pipeline.commands.output import print_paths, print_rows
from perpo_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from perpo_pipeline.run import Run


def eval_command(
    config: Config = DEFAULT_CONFIG,
    evaluation: Annotated[
        str | None,
        typer.Option(
            help="base, a trained method, or one of these with another image, e.g. "
            "perpo-blank-image (`perpo plan` lists them); default: all evaluations of the run"
        ),
    ] = None,
    prompts: Prompts = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="adapter artifact for --evaluation; default: the run's"),
    ] = None,
    model: Model = None,
    image_conditioning: Annotated[
        bool,
        typer.Option(
            "--image-conditioning",
            help="compare the true image with another prompt's image and with a blank one",
        ),
    ] = False,
    allow_train_images: Annotated[
        bool,
        typer.Option(
            "--allow-train-images",
            help="evaluate even on images that the adapter was trained on "
            "(eval.allow_train_images)",
        ),
    ] = False,
    sets: Set = None,
    run: RunName = None,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Evaluate a run's base model and its adapters.

    Decodes greedily; every metric has a 95 % interval. Reads the prompts of eval.split and the
    adapters, and writes predictions and metrics. An adapter is refused on images that it was
    trained on. Completions made elsewhere are measured by `perpo measure`.

    Example: perpo eval --config configs/demo.yaml --evaluation perpo

    Example: perpo eval --config configs/demo.yaml --image-conditioning --evaluation base
    """
    from perpo_pipeline.config.overrides import Override

    if adapter is not None and evaluation in (None, "base"):
        raise ConfigError(
            "--adapter needs exactly one trained method", fix="add --evaluation, e.g. perpo"
        )
    allowed = allow_train_images or None
    opened = open_run(
        config,
        sets,
        run=run,
        out=out,
        quiet=quiet,
        settings=[
            Override("model.id", model, "--model"),
            Override("eval.allow_train_images", allowed, "--allow-train-images"),
        ],
        inputs={"prompts": prompts, "adapter": adapter},
    )
    if image_conditioning:
        _condition(opened, evaluation, as_json)
    else:
        _evaluate(opened, evaluation, as_json)


def _evaluate(opened: "Run", evaluation: str | None, as_json: bool) -> None:
    from perpo_pipeline.evaluate.evaluate_model import evaluate
    from perpo_pipeline.evaluate.printing import metrics_table

    names = _choose(opened.config.eval_variants(), evaluation, opened)
    versions = [evaluate(opened, name) for name in names]
    if as_json:
        rows = [{"variant": v.variant, **row} for v in versions for row in v.table().to_pylist()]
        print_rows(rows, metrics_table, as_json)
        return
    for version in versions:
        opened.say(f"{version.variant}:\n{metrics_table(version.table().to_pylist())}")
    print_paths(versions)


def _condition(opened: "Run", model: str | None, as_json: bool) -> None:
    from perpo_pipeline.evaluate.conditioning import condition, conditioning_table

    models = _choose(opened.config.eval_models(), model, opened)
    print_rows([row for m in models for row in condition(opened, m)], conditioning_table, as_json)


def _choose(names: list[str], name: str | None, opened: "Run") -> list[str]:
    return choose_names(names, name, opened.out, option="--evaluation", what="evaluation")
