"""`perpo doctor`."""

from pathlib import Path
from typing import Annotated

import typer

from perpo_pipeline.commands.options import Debug
from perpo_pipeline.errors import ConfigError


def doctor(
    gpu: Annotated[
        bool, typer.Option("--gpu", help="prove that the GPUs work: about three minutes")
    ] = False,
    check: Annotated[
        list[str] | None,
        typer.Option(help="with --gpu: run only this check, once or several times"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="load this model and print how it would be sampled and trained"),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="with --gpu: write the results here, after each check"),
    ] = None,
    cpu: Annotated[
        bool, typer.Option("--cpu", hidden=True, help="with --gpu: rehearse on the processor")
    ] = False,
    debug: Debug = False,
) -> None:
    """Print what this machine can run, and how to install the rest.

    With --gpu it runs checks instead: the driver, arithmetic, memory, the training forward against
    a plain one, compilation, the links between GPUs, vLLM. Each has a process and a time limit of
    its own. The exit code is 0, 1 if a check failed, and 2 without a GPU.

    With --model it says instead whether the answers to a prompt can share it on that model, by
    proof on its weights, and why; and which layers an adapter would change.

    Example: perpo doctor

    Example: perpo doctor --model Qwen/Qwen2-VL-2B-Instruct

    Example: perpo doctor --gpu --json gpu.json

    Example: perpo doctor --gpu --check flex-bfloat16 --check memory
    """
    if not gpu:
        _refuse(check is not None, "--check")
        _refuse(json_file is not None, "--json")
        if model is not None:
            from perpo_pipeline.doctor.model import examine_model

            print(examine_model(model))
            return
        from perpo_pipeline.doctor.packages import examine

        print(examine())
        return
    if model is not None:
        raise ConfigError("--model and --gpu are two checks", fix="give one of them")
    from perpo_pipeline.doctor.gpu import check_card_is_there, choose_checks, examine_gpu

    checks = choose_checks(check or ())
    if not cpu:
        check_card_is_there()
    if examine_gpu(checks, typer.echo, json_file, "cpu" if cpu else "cuda"):
        raise typer.Exit(1)


def _refuse(is_given: bool, option: str) -> None:
    """Raise ConfigError for an option of --gpu without it."""
    if is_given:
        raise ConfigError(f"{option} needs --gpu", fix=f"perpo doctor --gpu {option} ...")
