"""`perpo train`."""

import os
from typing import TYPE_CHECKING, Annotated, Any

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
from perpo_pipeline.config.methods import METHODS
from perpo_pipeline.errors import ConfigError, Stopped

if TYPE_CHECKING:
    from perpo_pipeline.run import Run
    from perpo_pipeline.store.artifacts import Version
    from perpo_pipeline.train.launch import Launch


def train(
    ctx: typer.Context,
    config: Config = DEFAULT_CONFIG,
    variant: Variant = None,
    method: Annotated[str | None, typer.Option(help=", ".join(METHODS))] = None,
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
    deepspeed: Annotated[
        str | None, typer.Option(help="zero2, zero3, zero3-offload, or a path to settings")
    ] = None,
    num_processes: Annotated[
        int | None, typer.Option(help="processes on this node, one a GPU; torchrun starts them")
    ] = None,
    num_nodes: Annotated[int | None, typer.Option(help="nodes that this command runs on")] = None,
    node_rank: Annotated[
        int | None, typer.Option(help="which of them this is, from 0; default: SLURM_NODEID")
    ] = None,
    master: Annotated[str | None, typer.Option(help="HOST:PORT of node 0")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say what would be started, and start nothing")
    ] = False,
    run: RunName = None,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train an adapter on the kept lists; resumes from the last whole checkpoint.

    Example: perpo train --config configs/demo.yaml --method perpo

    On eight GPUs: perpo train --config RUN.yaml --method perpo --num-processes 8 --deepspeed zero3
    """
    from perpo_pipeline.train.launch import choose_launch

    variant = variant or method
    if variant is None and (beta or gamma is not None or learning_rate):
        raise ConfigError(
            "--beta, --gamma and --learning-rate are of one variant",
            fix="choose it with --variant or --method",
        )
    own = {"method": method, "beta": beta, "gamma": gamma, "learning_rate": learning_rate}
    settings: dict[Any, Any] = {
        "model.id": model,
        "train.forward": forward,
        "train.max_tokens_per_step": max_tokens_per_step,
        "train.deepspeed": deepspeed,
        "train.drop_too_long": drop_too_long or None,
        "train.log_to": log_to or None,
    }
    if variant is not None:
        settings |= {("train", "methods", variant, k): v for k, v in own.items()}
    opened = open_run(
        config,
        run=run,
        out=out,
        quiet=quiet,
        settings=settings,
        inputs={"preferences": preferences},
    )
    names = each_variant(list(opened.config.train.variants()), variant, out)
    launch = choose_launch(num_processes, num_nodes, node_rank, master, os.environ)
    if dry_run:
        _tell_plan(opened, names, launch, [*ctx.obj])
    elif launch is None:
        _train_here(opened, names)
    else:
        _start_each(opened, names, launch, [*ctx.obj], named=variant is not None)


def _train_here(run: "Run", names: list[str]) -> None:
    from perpo_pipeline.train.processes import is_first_process, leave_world, placed_by_launcher
    from perpo_pipeline.train.train_adapter import lost_contact_explained
    from perpo_pipeline.train.train_adapter import train as train_stage

    alone = placed_by_launcher(os.environ) is None
    with lost_contact_explained():
        try:
            versions = [
                (_done(run, name) if alone else None) or train_stage(run, name) for name in names
            ]
        except Stopped:  # all of them
            leave_world()
            raise
    if is_first_process():
        print_paths(versions)
    leave_world()


def _start_each(
    run: "Run", names: list[str], launch: "Launch", arguments: list[str], *, named: bool
) -> None:
    """The processes of one variant after those of another: each has a clean start."""
    from perpo_pipeline.train.launch import start
    from perpo_pipeline.train.train_adapter import check_before_start

    for name in names:
        if (found := _done(run, name)) is not None:
            print_paths([found])
            continue
        check_before_start(run, name, launch.num_processes, launch.world_size)
        start(launch, arguments if named else [*arguments, "--variant", name])


def _done(run: "Run", name: str) -> "Version | None":
    """What is trained already: that needs no package and no GPU of this machine."""
    from perpo_pipeline.train.train_adapter import find_trained

    found = find_trained(run, name)
    if found is not None:
        run.say(f"train {name}: up to date ({found.path})")
    return found


def _tell_plan(run: "Run", names: list[str], launch: "Launch | None", given: list[str]) -> None:
    from perpo_pipeline.train.dry_run import describe_training

    for name in names:
        print(describe_training(run, name, launch, given))
