"""`perpo plan`."""

import json
from typing import Annotated

import typer

from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    Config,
    Debug,
    RunName,
    Set,
    open_run,
)


def plan(
    config: Config = DEFAULT_CONFIG,
    hardware: Annotated[
        str | None,
        typer.Option(
            metavar="NAMExN",
            help="plan for this hardware, e.g. h100x8 or rtx4090; default: this machine",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the plan as JSON")] = False,
    sets: Set = None,
    run: RunName = None,
    debug: Debug = False,
) -> None:
    """Print what a run will take, before anything runs.

    Prompts, answers, lists and steps, tokens, memory, disk, downloads, and the time of each stage,
    as a range and with its source. What cannot be known yet is said to be unknown.

    Example: perpo plan --config configs/demo.yaml

    Example: perpo plan --config configs/llava15-grounding.yaml --hardware h100x8
    """
    from perpo_pipeline.planning.hardware import describe_hardware
    from perpo_pipeline.planning.page import plan_json, plan_text
    from perpo_pipeline.planning.plan import make_plan

    described = None if hardware is None else describe_hardware(hardware)
    found = make_plan(open_run(config, sets, run=run), described)
    print(json.dumps(plan_json(found), indent=2) if as_json else plan_text(found))
