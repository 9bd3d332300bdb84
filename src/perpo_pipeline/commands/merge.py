"""`perpo merge`."""

from pathlib import Path
from typing import Annotated

import typer

from perpo_pipeline.commands.options import Debug, Quiet
from perpo_pipeline.errors import ConfigError


def merge(
    adapter: Annotated[Path, typer.Option(help="adapter artifact, or one version of it")],
    out: Annotated[Path, typer.Option(help="folder for the model; empty or not there")],
    config: Annotated[
        Path | None, typer.Option(help="run whose base it is; default: the adapter's record")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="the base: hub id, directory, or `testbed`")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="of the weights: auto (as in training), float32 or bfloat16")
    ] = "auto",
    metrics: Annotated[
        list[Path] | None, typer.Option(help="metrics artifacts for the card; default: the run's")
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(help="upload as this model; token from the login or HF_TOKEN")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="with --push-to-hub: not for everybody to read")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fold an adapter into its base: a model for transformers and vLLM, with a model card.

    Example: perpo merge --adapter data/demo/adapter/perpo --out merged
    """
    from perpo_pipeline.merge.merge_adapter import merge as merge_stage
    from perpo_pipeline.merge.push import check_can_push, push
    from perpo_pipeline.run import Console

    if config is not None and model is not None:
        raise ConfigError("--config and --model both name the base", fix="give one of them")
    if private and push_to_hub is None:
        raise ConfigError("--private is of --push-to-hub", fix="give both, or neither")
    if push_to_hub is not None:
        check_can_push(push_to_hub)
    revision = None
    if config is not None:
        from perpo_pipeline.config.file import load_config

        asked = load_config(config).model
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
