"""`perpo train`."""

import os
import re
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    AllowStale,
    Config,
    Debug,
    Model,
    Out,
    Preferences,
    Quiet,
    RunName,
    Set,
    check_one_out,
    choose_names,
    open_run,
)
from perpo_pipeline.commands.output import print_paths
from perpo_pipeline.config.methods import METHODS
from perpo_pipeline.errors import Stopped

if TYPE_CHECKING:
    from perpo_pipeline.config.run import RunConfig
    from perpo_pipeline.run import Run
    from perpo_pipeline.store.artifacts import Version
    from perpo_pipeline.train.launch import Launch


def train(
    ctx: typer.Context,
    config: Config = DEFAULT_CONFIG,
    method: Annotated[
        str | None,
        typer.Option(
            help="an entry of train.methods, one of its seeds as NAME-seedN, or a method with the "
            f"shared settings: {', '.join(METHODS)}; default: every entry"
        ),
    ] = None,
    preferences: Preferences = None,
    model: Model = None,
    deepspeed: Annotated[
        str | None,
        typer.Option(help="zero2, zero3, zero3-offload, or a path to settings (train.deepspeed)"),
    ] = None,
    num_processes: Annotated[
        int | None,
        typer.Option(
            help="processes on this node, one per GPU; torchrun starts them (train.num_processes)"
        ),
    ] = None,
    num_nodes: Annotated[
        int | None, typer.Option(help="number of nodes on which this command is started")
    ] = None,
    node_rank: Annotated[
        int | None,
        typer.Option(help="number of this node, counted from 0; default: SLURM_NODEID"),
    ] = None,
    master: Annotated[
        str | None, typer.Option(help="HOST:PORT of node 0, reachable from every node")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="print the command, steps and memory, and start nothing"),
    ] = False,
    sets: Set = None,
    run: RunName = None,
    out: Out = None,
    allow_stale: AllowStale = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train an adapter on the kept lists.

    Reads preferences, and writes one adapter per method (and seed). Ctrl-C saves a
    checkpoint; the same command goes on from there.

    Example: perpo train --config configs/demo.yaml --method perpo

    Example: perpo train --config configs/demo.yaml --method dpo --set train.methods.dpo.beta=0.2

    Example: perpo train --config RUN.yaml --method perpo --num-processes 8 --deepspeed zero3
    """
    from perpo_pipeline.config.overrides import Override
    from perpo_pipeline.train.launch import choose_launch

    settings = [
        Override("model.id", model, "--model"),
        Override("train.deepspeed", deepspeed, "--deepspeed"),
    ]
    given: dict[str, Any] = {
        "run": run,
        "out": out,
        "quiet": quiet,
        "allow_stale": allow_stale,
        "inputs": {"preferences": preferences},
    }
    opened = open_run(config, sets, settings=settings, methods_are_known=False, **given)
    if method is not None and (unlisted := _unlisted_method(opened.config, method)):
        settings.append(Override(("train", "methods", unlisted, "method"), unlisted, "--method"))
    opened = open_run(config, sets, settings=settings, **given)
    names = _choose(opened, method)
    _warn_of_own_settings(opened, sets, names)

    def launch_of(name: str) -> "Launch | None":
        own = opened.config.train.variants()[name].num_processes
        return choose_launch(num_processes, num_nodes, node_rank, master, os.environ, own)

    for launch, group in groupby(names, launch_of):
        alike = [*group]
        if dry_run:
            _print_plan(opened, alike, launch, [*ctx.obj])
        elif launch is None:
            _train_here(opened, alike)
        else:
            _start_each(opened, alike, launch, [*ctx.obj], named=method in names)


def _unlisted_method(config: "RunConfig", name: str) -> str | None:
    """The known method that `name` (or NAME-seedN) asks for and that the file does not list."""
    method = re.sub(r"-seed\d+$", "", name)
    listed = {*config.train.methods, *config.train.variants()}
    return method if method in METHODS and not listed & {method, name} else None


def _warn_of_own_settings(run: "Run", sets: list[str] | None, names: list[str]) -> None:
    """Report the shared settings of the command line that a chosen method replaces by its own."""
    from perpo_pipeline.config.overrides import parse_set, shared_training_settings

    for path, override in shared_training_settings(map(parse_set, sets or ())):
        _, own = run.config.train.methods_that_take(path)
        setting = ".".join(path)
        for method in own:
            if any(name == method or name.startswith(f"{method}-seed") for name in names):
                run.say(
                    f"train {method}: {override.option} does not change it: it sets its own "
                    f"{setting} (train.methods.{method}.{setting})"
                )


def _choose(run: "Run", method: str | None) -> list[str]:
    """The adapters to train: all, one by its name, or all seeds of one method."""
    names = list(run.config.train.variants())
    if method not in names and method in run.config.train.methods:
        names = [f"{method}-seed{seed}" for seed in run.config.train.seeds]
        check_one_out(names, run.out, option="--method", what="method")
        return names
    if method is not None and method not in names:
        names = list(dict.fromkeys([*names, *METHODS]))
    return choose_names(names, method, run.out, option="--method", what="method")


def _train_here(run: "Run", names: list[str]) -> None:
    from perpo_pipeline.train.processes import is_first_process, leave_world, placed_by_launcher
    from perpo_pipeline.train.train_adapter import lost_contact_explained
    from perpo_pipeline.train.train_adapter import train as train_stage

    alone = placed_by_launcher(os.environ) is None
    with lost_contact_explained():
        try:
            versions = [
                (_find_done(run, name) if alone else None) or train_stage(run, name)
                for name in names
            ]
        except Stopped:  # in every process
            leave_world()
            raise
    if is_first_process():
        print_paths(versions)
    leave_world()


def _start_each(
    run: "Run", names: list[str], launch: "Launch", arguments: list[str], *, named: bool
) -> None:
    """Start the processes of one method after those of another: each has a clean start."""
    from perpo_pipeline.train.launch import start
    from perpo_pipeline.train.task import check_before_start

    for name in names:
        if (found := _find_done(run, name)) is not None:
            print_paths([found])
            continue
        check_before_start(run, name, launch.num_processes, launch.world_size)
        start(launch, arguments if named else [*arguments, "--method", name])


def _find_done(run: "Run", name: str) -> "Version | None":
    """The adapter that is trained already: finding it needs no package and no GPU."""
    from perpo_pipeline.train.task import reuse_trained

    found = reuse_trained(run, name)
    if found is not None:
        run.say(f"train {name}: up to date ({found.path})")
    return found


def _print_plan(run: "Run", names: list[str], launch: "Launch | None", given: list[str]) -> None:
    from perpo_pipeline.planning.training import describe_training

    for name in names:
        print(describe_training(run, name, launch, given))
