"""`perpo make-rules`: hidden from --help; the Makefile calls it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from perpo_pipeline import advice
from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    Config,
    Debug,
    RunName,
    Set,
    read_config,
)
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.shipped.files import CODE

if TYPE_CHECKING:
    from perpo_pipeline.config.run import RunConfig
    from perpo_pipeline.status.calls import Call

OF_THE_SHELL = "*?[](){}<>'\"&~`!"  # the rules name the run's folder without quotes


def make_rules(
    config: Config = DEFAULT_CONFIG,
    code: Annotated[
        bool, typer.Option("--code", help="print only the folder of the program's code")
    ] = False,
    sets: Set = None,
    run: RunName = None,
    debug: Debug = False,
) -> None:
    """Print a run's graph as Make rules, which the Makefile includes.

    Reads only the run's YAML file. One rule for each call of a stage: the files `current` that it
    writes and those that it reads. stages/*.mk has the commands.

    Example: perpo make-rules --config configs/demo.yaml
    """
    if code:
        print(CODE)
        return
    print("\n".join(rules(read_config(config, sets, run=run))))


def rules(config: "RunConfig") -> Iterator[str]:
    """Yield the lines: what the goal of each stage is, and a rule for each call of a stage.

    Raises ConfigError if Make cannot work with the name of the run's folder.
    """
    from perpo_pipeline.config.sources import source_files
    from perpo_pipeline.status.calls import calls
    from perpo_pipeline.status.graph import STAGES

    _check_folder(config)
    every = calls(config)
    yield f"DATA := {config.run_dir}"
    if "rounds" in config.model_fields_set:  # `make all` makes the rounds
        yield "ALL := rounds-shown"
    for split, source in config.prepare.items():
        files = [str(file) for file in source_files(source)]
        yield f"SOURCES_{split} := {' '.join(filter(_fits_make, files))}"
    for stage in STAGES:
        made = [target for call in every if call.stage == stage for target in _targets(call)]
        yield f"{stage}: {' '.join(made)}"
    for call in every:
        needs = [f"$(DATA)/{artifact}/{variant}/current" for artifact, variant in call.needs]
        if call.stage == "prepare":  # a missing file is an error of perpo, not of Make
            needs = [f"$(wildcard $(SOURCES_{call.names[0]}))", *needs]
        if call.stage == "filter" and (lists := config.filter.earlier) and _fits_make(str(lists)):
            needs.append(f"$(wildcard {lists}/current)")
        yield f"{' '.join(_targets(call))} &: {' '.join([*needs, '$(SETTINGS)'])}"
        yield f"\t$(call perpo_{call.stage},{' '.join(call.names)})"


def _check_folder(config: "RunConfig") -> None:
    """Raise ConfigError if the run's folder, of which Make's rules are full, has no name for it."""
    folder = str(config.run_dir)
    if not _fits_make(folder) or any(one in folder for one in OF_THE_SHELL):
        instead = "iterate" if "rounds" in config.model_fields_set else "run"
        raise ConfigError(
            f"Make cannot have the run's folder '{folder}' in its rules: spaces and signs such as "
            "$ # : ' ( mean something to Make or its shell",
            where="data_root",
            fix=f"use: {advice.command(instead)}; or choose another data_root",
        )


def _fits_make(file: str) -> bool:
    """Whether Make can depend on the file: it splits names at spaces, and has no way to quote.

    `perpo status` and `perpo run` notice that such a file has changed, Make does not.
    """
    return not any(one.isspace() or one in "#$%:;|=\\" for one in file)


def _targets(call: "Call") -> list[str]:
    return [f"$(DATA)/{node.name}/current" for node in call.made]
