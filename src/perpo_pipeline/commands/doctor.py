"""`perpo doctor`."""

from collections.abc import Sequence
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
        typer.Option("--json", help="with --gpu or --model: write the results here"),
    ] = None,
    cpu: Annotated[
        bool, typer.Option("--cpu", hidden=True, help="with --gpu: rehearse on the processor")
    ] = False,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.KEY=VALUE",
            help="with --model: change a setting of the model, e.g. model.quantization=nf4; may "
            "be repeated; `perpo settings model` lists them",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Print what this machine can run, and how to install the rest.

    With --gpu it runs checks instead: the driver, arithmetic, memory, the training forward against
    a plain one, compilation, the links between GPUs, vLLM. Each has a process and a time limit of
    its own. The exit code is 0, 1 if a check failed, and 2 without a GPU.

    With --model it says instead whether the answers to a prompt can share it on that model, by
    proof on its weights, and why; what its chat template writes; which layers an adapter would
    change. --set changes settings of the model (`--set model.quantization=nf4`). Weights that do
    not fit are left out, and the proof with them.

    Example: perpo doctor

    Example: perpo doctor --model Qwen/Qwen2-VL-2B-Instruct

    Example: perpo doctor --model Qwen/Qwen2-VL-2B-Instruct --set model.quantization=nf4

    Example: perpo doctor --gpu --json gpu.json

    Example: perpo doctor --gpu --check flex-bfloat16 --check memory
    """
    _refuse(check is not None and not gpu, "--check", "--gpu")
    _refuse(json_file is not None and not gpu and model is None, "--json", "--gpu or --model")
    _refuse(bool(sets) and model is None, "--set", "--model")
    if gpu and model is not None:
        raise ConfigError("--model and --gpu are two checks", fix="give one of them")
    if model is not None:
        _examine_model(model, sets or (), json_file)
        return
    if not gpu:
        from perpo_pipeline.doctor.packages import examine

        print(examine())
        return
    from perpo_pipeline.doctor.gpu import check_card_is_there, choose_checks, examine_gpu

    checks = choose_checks(check or ())
    if not cpu:
        check_card_is_there()
    if examine_gpu(checks, typer.echo, json_file, "cpu" if cpu else "cuda"):
        raise typer.Exit(1)


def _examine_model(model: str, sets: Sequence[str], json_file: Path | None) -> None:
    from perpo_pipeline.config.file import model_settings
    from perpo_pipeline.config.overrides import parse_set

    config = model_settings(model, map(parse_set, sets))
    from perpo_pipeline.doctor.model import as_text, examine_model, write_json

    lines = examine_model(config)
    print(as_text(lines))
    if json_file is not None:
        write_json(json_file, lines)


def _refuse(is_alone: bool, option: str, needs: str) -> None:
    """Raise ConfigError for an option without the one that it belongs to."""
    if is_alone:
        first = needs.split()[0]
        raise ConfigError(f"{option} needs {needs}", fix=f"perpo doctor {first} ... {option} ...")
