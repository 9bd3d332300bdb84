"""`perpo eval`."""

from collections.abc import Sequence
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated

import typer

from perpo_pipeline.commands.harness import check_harness_options, run_harness
from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    AllowStale,
    Config,
    Debug,
    Json,
    Model,
    Out,
    Prompts,
    Quiet,
    RunName,
    Set,
    check_one_out,
    open_run,
)
from perpo_pipeline.commands.output import print_paths, print_rows
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.suggestions import did_you_mean

if TYPE_CHECKING:
    from perpo_pipeline.config.evaluations import Evaluation
    from perpo_pipeline.run import Run
    from perpo_pipeline.store.artifacts import Version


def eval_command(
    config: Config = DEFAULT_CONFIG,
    evaluation: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="base or a trained method on all its splits (perpo), on one (perpo@test), or with "
            "another image (perpo-blank-image); may be repeated; "
            "default: all",
        ),
    ] = None,
    prompts: Prompts = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="adapter artifact for --evaluation; default: the run's"),
    ] = None,
    model: Model = None,
    backend: Annotated[
        str | None, typer.Option(help="auto, transformers, vllm or openai (eval.backend)")
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible server to ask, e.g. http://host:8000/v1"),
    ] = None,
    num_gpus: Annotated[
        int | None, typer.Option(help="processes, one per GPU (eval.num_gpus)")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="local or ray (eval.engine)")] = None,
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
    harness: Annotated[
        str | None,
        typer.Option(help="lmms-eval: run its benchmarks instead of eval.splits, where installed"),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="with --harness: its tasks, separated by commas, e.g. pope,mmbench_en"),
    ] = None,
    harness_args: Annotated[
        str,
        typer.Option(help="further arguments for the harness, in quotes, e.g. '--limit 100'"),
    ] = "",
    harness_python: Annotated[
        str | None,
        typer.Option(
            help="python of the environment that has the harness; default: "
            "$PERPO_LMMS_EVAL_PYTHON, else this one"
        ),
    ] = None,
    sets: Set = None,
    run: RunName = None,
    out: Out = None,
    allow_stale: AllowStale = False,
    as_json: Json = False,
    details: Annotated[
        bool,
        typer.Option("--details", help="also print every metric of every evaluation, and slices"),
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Evaluate a run's base model and its adapters.

    Decodes greedily; every metric has a 95 % interval. Reads the prompts of eval.splits and the
    adapters, and writes predictions and metrics, one of each for every model and split. An adapter
    is refused on images that it was trained on. Completions made elsewhere are measured by
    `perpo measure`. With --harness, lmms-eval measures its own tasks on the base and the merged
    models; its results become metrics of the run, too.

    Example: perpo eval --config configs/demo.yaml --evaluation perpo@test

    Example: perpo eval --config configs/demo.yaml --harness lmms-eval --tasks pope,mmmu_val

    Example: perpo eval --config configs/demo.yaml --image-conditioning --evaluation base
    """
    from perpo_pipeline.config.overrides import Override

    check_harness_options(harness, tasks, harness_args, harness_python, image_conditioning, prompts)
    allowed = allow_train_images or None
    opened = open_run(
        config,
        sets,
        run=run,
        out=out,
        quiet=quiet,
        allow_stale=allow_stale,
        settings=[
            Override("model.id", model, "--model"),
            Override("eval.backend", backend, "--backend"),
            Override("eval.base_url", base_url, "--base-url"),
            Override("eval.num_gpus", num_gpus, "--num-gpus"),
            Override("eval.engine", engine, "--engine"),
            Override("eval.allow_train_images", allowed, "--allow-train-images"),
        ],
        inputs={"prompts": prompts, "adapter": adapter},
    )
    if prompts is not None:
        opened = _on_given_prompts(opened)
    if adapter is not None:
        _check_one_method(opened, evaluation)
    if tasks is not None:
        run_harness(opened, evaluation, tasks, harness_args, harness_python, as_json)
    elif image_conditioning:
        _condition(opened, evaluation, as_json)
    else:
        _evaluate(opened, evaluation, as_json, details)


def _evaluate(opened: "Run", asked: list[str] | None, as_json: bool, details: bool) -> None:
    from perpo_pipeline.evaluate.evaluate_model import evaluate_all
    from perpo_pipeline.evaluate.printing import metrics_table

    names = [one.name for one in _choose(opened.config.evaluations(), asked)]
    check_one_out(names, opened.out, option="--evaluation", what="evaluation")
    versions = []
    try:
        for version in evaluate_all(opened, names):
            versions.append(version)
            if details and not as_json:
                opened.say(f"{version.variant}:\n{metrics_table(version.table().to_pylist())}")
    finally:  # what is finished is shown even if one failed
        if as_json:
            named = [(version.variant, version.table().to_pylist()) for version in versions]
            rows = [{"variant": name, **row} for name, found in named for row in found]
            if rows:
                print_rows(rows, metrics_table, as_json)
        else:
            _show_result(opened, versions, details)
            print_paths(versions)


def _show_result(opened: "Run", versions: "Sequence[Version]", details: bool) -> None:
    """Print one table of all evaluations; all metrics of a single one."""
    from perpo_pipeline.evaluate.printing import metrics_table
    from perpo_pipeline.evaluate.result_table import result_table

    if len(versions) == 1 and not details:
        (version,) = versions
        opened.say(f"{version.variant}:\n{metrics_table(version.table().to_pylist())}")
    elif len(versions) > 1:
        opened.say(result_table(versions, columns=get_terminal_size().columns))
        _compare_splits(opened, versions)


def _compare_splits(opened: "Run", versions: "Sequence[Version]") -> None:
    """Print a table over the splits or tasks if there are several: models with right images."""
    from perpo_pipeline.evaluate.printing import splits_table
    from perpo_pipeline.evaluate.result_table import every_task, rows_of_splits

    outside = opened.config.eval.out_of_domain
    rows = rows_of_splits(versions)
    if (table := every_task(versions, outside)) is not None:
        opened.say(table)
    elif len({row["split"] for row in rows}) > 1:
        opened.say(f"all splits:\n{splits_table(rows, outside)}")


def _condition(opened: "Run", asked: list[str] | None, as_json: bool) -> None:
    from perpo_pipeline.evaluate.conditioning import condition, conditioning_table

    chosen = _choose_conditioned(opened, asked)
    names = [one.name for one in chosen]
    check_one_out(names, opened.out, option="--evaluation", what="evaluation")
    rows = [row for one in chosen for row in condition(opened, one.model, one.split)]
    print_rows(rows, conditioning_table, as_json)


def _on_given_prompts(opened: "Run") -> "Run":
    """The run with the given prompts as its only test split."""
    from dataclasses import replace

    split = opened.latest("prompts").variant
    only = {"splits": [split], "condition_splits": None, "out_of_domain": []}
    settings = opened.config.eval.model_copy(update=only)
    return replace(opened, config=opened.config.model_copy(update={"eval": settings}))


def _check_one_method(opened: "Run", asked: list[str] | None) -> None:
    from perpo_pipeline.config.evaluations import BASE

    models = {one.model for one in _choose(opened.config.evaluations(), asked)}
    if len(models) > 1 or BASE in models:
        raise ConfigError(
            "--adapter needs exactly one trained method", fix="add --evaluation, e.g. perpo"
        )


def _choose(every: "Sequence[Evaluation]", asked: list[str] | None) -> "list[Evaluation]":
    """The evaluations that `asked` means: a name without a split means all its splits."""
    meant = {name: [e for e in every if name in (e.name, e.shown)] for name in asked or ()}
    for name, found in meant.items():
        if not found:
            raise _no_such_evaluation(name, every)
    chosen = {one for found in meant.values() for one in found}
    return [one for one in every if not asked or one in chosen]


def _no_such_evaluation(name: str, every: "Sequence[Evaluation]") -> ConfigError:
    shown = list(dict.fromkeys(one.shown for one in every))
    splits = list(dict.fromkeys(one.split for one in every))
    near = did_you_mean(name, [*shown, *(one.name for one in every)])
    return ConfigError(
        f"--evaluation {name}: this run has no such evaluation{near}",
        fix=f"choose one of {', '.join(shown)}; alone, or followed by @ and one of the splits "
        f"{', '.join(splits)}",
    )


def _choose_conditioned(opened: "Run", asked: list[str] | None) -> "list[Evaluation]":
    """Evaluations to repeat with wrong images: on eval.condition_splits, or on a split in `asked`.

    Raises ConfigError for names that are not of this run.
    """
    from perpo_pipeline.config.evaluations import Evaluation

    config = opened.config
    every = [Evaluation(m, split) for m in config.eval_models() for split in config.eval.splits]
    wrong = config.eval.splits_with_wrong_images()
    chosen = _choose(every, asked)
    return [one for one in chosen if one.split in wrong or one.name in (asked or ())]
