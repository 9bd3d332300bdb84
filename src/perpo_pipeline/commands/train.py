"""`perpo train`."""

from typing import Annotated, Any

import typer

from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    Config,
    Debug,
    Model,
    Out,
    Preferences,
    Quiet,
    RunName,
    Variant,
    each_variant,
    open_run,
    print_paths,
)
from perpo_pipeline.errors import ConfigError


def train(
    config: Config = DEFAULT_CONFIG,
    variant: Variant = None,
    method: Annotated[str | None, typer.Option(help="perpo, lipo, lipo-lambda, dpo, sft")] = None,
    preferences: Preferences = None,
    model: Model = None,
    beta: Annotated[float | None, typer.Option(help="scale of the implicit score")] = None,
    gamma: Annotated[float | None, typer.Option(help="exponent of the reward gap")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="peak of the schedule")] = None,
    forward: Annotated[
        str | None, typer.Option(help="auto, shared-prefix, or concatenated (slow, safe)")
    ] = None,
    max_tokens_per_step: Annotated[
        int | None, typer.Option(help="tokens a forward pass; lower it when memory runs out")
    ] = None,
    drop_too_long: Annotated[
        bool, typer.Option("--drop-too-long", help="leave out lists longer than the context")
    ] = False,
    log_to: Annotated[
        list[str] | None, typer.Option(help="tensorboard, wandb, ...; give it once for each")
    ] = None,
    run: RunName = None,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train an adapter on the kept lists; resumes from the last whole checkpoint.

    Example: perpo train --config configs/demo.yaml --method perpo
    """
    from perpo_pipeline.train.stage import train as train_stage

    variant = variant or method
    if variant is None and (beta or gamma is not None or learning_rate):
        raise ConfigError("--beta, --gamma and --learning-rate are of one variant",
                          fix="choose it with --variant or --method")  # fmt: skip
    own = {"method": method, "beta": beta, "gamma": gamma, "learning_rate": learning_rate}
    settings: dict[str, Any] = {"model.id": model, "train.forward": forward,
                                "train.max_tokens_per_step": max_tokens_per_step,
                                "train.drop_too_long": drop_too_long or None,
                                "train.log_to": log_to or None}  # fmt: skip
    if variant is not None:
        settings |= {f"train.methods.{variant}.{k}": v for k, v in own.items()}
    opened = open_run(config, run=run, out=out, quiet=quiet, settings=settings,
                       inputs={"preferences": preferences})  # fmt: skip
    names = each_variant(list(opened.config.train.variants()), variant, out)
    print_paths([train_stage(opened, name) for name in names])
