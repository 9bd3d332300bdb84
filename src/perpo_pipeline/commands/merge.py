"""`perpo merge`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perpo_pipeline.commands.options import AllowStale, Debug, Quiet, Set, open_run
from perpo_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from perpo_pipeline.run import Run


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
    adapter_only: Annotated[
        bool,
        typer.Option(
            "--adapter-only",
            help="merge nothing: write the adapter alone, for PEFT, with a card",
        ),
    ] = False,
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
    allow_stale: AllowStale = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fold an adapter into its base model.

    Reads the adapter and its base. Writes a model folder for transformers and vLLM, with a model
    card, and prints its path. With --adapter-only the folder holds the adapter as PEFT loads it,
    for others who have the base. With --config, an adapter of that run must be as the file says.

    Example: perpo merge --adapter data/demo/adapter/perpo --out merged

    Example: perpo merge --adapter data/demo/adapter/perpo --out adapter --adapter-only
    """
    from perpo_pipeline.hub import check_can_push, push
    from perpo_pipeline.merge.merge_adapter import merge as merge_stage
    from perpo_pipeline.run import Console

    if config is not None and model is not None:
        raise ConfigError("--config and --model both name the base model", fix="give one of them")
    if sets and config is None:
        raise ConfigError("--set changes the settings of a file", fix="name the file with --config")
    if adapter_only and dtype != "auto":
        raise ConfigError(
            "--dtype is the type of merged weights, and --adapter-only merges nothing",
            fix="give one of them",
        )
    if private and push_to_hub is None:
        raise ConfigError("--private needs --push-to-hub", fix="give both, or neither")
    if push_to_hub is not None:
        check_can_push(push_to_hub)
    revision, trusts = None, False
    if config is not None:
        opened = open_run(config, sets, quiet=quiet, allow_stale=allow_stale)
        model, revision = opened.config.model.id, opened.config.model.revision
        trusts = opened.config.model.trust_remote_code
        _check_own(opened, adapter)
    console = Console(quiet)
    merged = merge_stage(
        adapter,
        out,
        model=model,
        revision=revision,
        trust_remote_code=trusts,
        dtype=dtype,
        metrics=metrics or (),
        adapter_only=adapter_only,
        console=console,
    )
    if push_to_hub is not None:
        place = push(
            merged,
            push_to_hub,
            kind="model",
            private=private,
            quiet=quiet,
            message="Made by perpo",
        )
        console.say(f"merge: pushed to {place}")
    print(merged)


def _check_own(run: "Run", adapter: Path) -> None:
    """Raise `ArtifactError` for an adapter in use of the run that is not as the file says."""
    from perpo_pipeline.store.artifacts import follow_current

    for variant in run.config.train.variants():
        place = run.place("adapter", variant)
        if adapter.resolve() in (place.resolve(), follow_current(place).resolve()):
            run.latest("adapter", variant)
