"""`perpo merge`."""

from pathlib import Path
from typing import Annotated

import typer

from perpo_pipeline.commands.options import Debug, Quiet, Set, read_config
from perpo_pipeline.errors import ConfigError


def merge(
    adapter: Annotated[Path, typer.Option(help="adapter artifact, or one version of it")],
    out: Annotated[Path, typer.Option(help="folder for the merged model; must be empty or new")],
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file of the run whose base model is merged; default: the base that the "
            "adapter was trained on"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="the base model: hub id, directory, or `testbed`")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="type of the weights: auto (as in training), float32 or bfloat16")
    ] = "auto",
    metrics: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="metrics artifact for the model card; may be repeated; default: the run's",
        ),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(help="upload as this model; the token comes from the login or HF_TOKEN"),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="with --push-to-hub: upload to a private repository")
    ] = False,
    sets: Set = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fold an adapter into its base model.

    Reads the adapter and its base. Writes a model folder for transformers and vLLM, with a model
    card, and prints its path.

    Example: perpo merge --adapter data/demo/adapter/perpo --out merged
    """
    from perpo_pipeline.merge.merge_adapter import merge as merge_stage
    from perpo_pipeline.merge.push import check_can_push, push
    from perpo_pipeline.run import Console

    if config is not None and model is not None:
        raise ConfigError("--config and --model both name the base model", fix="give one of them")
    if sets and config is None:
        raise ConfigError("--set changes the settings of a file", fix="name the file with --config")
    if private and push_to_hub is None:
        raise ConfigError("--private needs --push-to-hub", fix="give both, or neither")
    if push_to_hub is not None:
        check_can_push(push_to_hub)
    revision = None
    if config is not None:
        asked = read_config(config, sets).model
        model, revision = asked.id, asked.revision
    console = Console(quiet)
    merged = merge_stage(
        adapter,
        out,
        model=model,
        revision=revision,
        dtype=dtype,
        metrics=metrics or (),
        console=console,
    )
    if push_to_hub is not None:
        push(merged, push_to_hub, private=private, console=console)
    print(merged)
