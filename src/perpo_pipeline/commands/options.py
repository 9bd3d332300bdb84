"""What several commands share: their options, and how they open a run."""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perpo_pipeline import advice
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.shipped.files import OWN_CONFIG, find_file
from perpo_pipeline.suggestions import did_you_mean
from perpo_pipeline.train.launch import LAUNCHED

if TYPE_CHECKING:
    from perpo_pipeline.config.overrides import Override
    from perpo_pipeline.config.run import RunConfig
    from perpo_pipeline.run import Run

Config = Annotated[
    Path,
    typer.Option(
        "--config",
        help="the run's YAML file, or the name of one that ships with perpo, such as demo",
        show_default="perpo.yaml, else configs/demo.yaml",
    ),
]
RunName = Annotated[
    str | None, typer.Option("--run", help="name of the run; default: the name in the file")
]
Out = Annotated[
    Path | None, typer.Option("--out", help="directory to write to; default: in the run's folder")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="change a setting, e.g. train.lora.rank=8; the value is YAML; may be repeated; "
        "`perpo settings` lists all settings",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="show no progress bars (for logs)")]
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]
Json = Annotated[bool, typer.Option("--json", help="print rows as JSON, in full precision")]
Prompts = Annotated[Path | None, typer.Option(help="prompts artifact; default: the run's")]
Samples = Annotated[Path | None, typer.Option(help="samples artifact; default: the run's")]
Scores = Annotated[Path | None, typer.Option(help="scores artifact; default: the run's")]
Preferences = Annotated[Path | None, typer.Option(help="preferences artifact; default: the run's")]
Model = Annotated[
    str | None, typer.Option(help="the model: hub id, directory, or `testbed` (model.id)")
]
AllowStale = Annotated[
    bool,
    typer.Option(
        "--allow-stale",
        help="take inputs that the configuration no longer describes; they are named",
    ),
]
DEFAULT_CONFIG = Path("configs/demo.yaml")


def read_config(
    config: Path,
    sets: Sequence[str] | None,
    *,
    run: str | None = None,
    settings: "Iterable[Override]" = (),
    methods_are_known: bool = True,
) -> "RunConfig":
    """Load the run's file under the settings of the command line; None means not given.

    From here on advice names this run. Raises ConfigError for a setting that would change no
    method, unless further methods may be added to those of the file (`methods_are_known=False`).
    """
    from perpo_pipeline.config.file import load_config
    from perpo_pipeline.config.overrides import Override, parse_set, refuse_without_effect
    from perpo_pipeline.config.renamed import take_renamed_option

    config = _find_config(config)
    options = [Override("run", run, "--run"), *settings]
    given = [option for option in options if option.value is not None]
    advice.set_run(config, run, [*_shared_by_stages(given), *(sets or ())])
    overrides = [*given, *(take_renamed_option(parse_set(text)) for text in sets or ())]
    loaded = load_config(config, overrides)
    if methods_are_known:
        refuse_without_effect(loaded, overrides)
    return loaded


def _find_config(config: Path) -> Path:
    """The run's file: `config`, or the one that is here where no --config was given.

    Says once what was not given as a file. Raises ConfigError if there is no file to take.
    """
    if config != DEFAULT_CONFIG or not advice.has_begun() or advice.was_given("--config"):
        if (file := find_file(config)) != config:
            _say_once(f"there is no file {config} here, so it is the one of perpo: {file}")
        return config
    found = next((file for file in (OWN_CONFIG, DEFAULT_CONFIG) if file.is_file()), None)
    if found is None:
        raise ConfigError(
            f"no --config was given, and there is no {DEFAULT_CONFIG} here, nor a {OWN_CONFIG}",
            where=str(Path.cwd()),
            fix="give the run's file: --config FILE.yaml, or --config demo for the one that ships "
            "with perpo; or write a run's folder: perpo init FOLDER",
        )
    if DEFAULT_CONFIG.is_file():  # the project's folder, or one with both
        _say_once(f"no --config was given, so it is {found}")
    return found


def _say_once(what: str) -> None:
    """Say what file a run's is; the same command may open its run again, in other processes too."""
    if advice.has_begun() and advice.current().of_run == () and LAUNCHED not in os.environ:
        print(f"perpo: {what}", file=sys.stderr)


def _shared_by_stages(given: "Sequence[Override]") -> list[str]:
    """What options such as --model set for every stage, as the text of a `--set`."""
    return [
        f"{one.key}={one.value}"
        for one in given
        if isinstance(one.key, str) and (one.key == "seed" or one.key.startswith("model."))
    ]


def open_run(
    config: Path,
    sets: Sequence[str] | None,
    *,
    run: str | None = None,
    out: Path | None = None,
    quiet: bool = False,
    settings: "Iterable[Override]" = (),
    inputs: dict[str, Path | None] | None = None,
    methods_are_known: bool = True,
    allow_stale: bool = False,
) -> "Run":
    """As `read_config`, with the places that options give for artifacts; None means not given.

    The run knows what the command line gave, which is recorded with what the command makes.
    """
    from perpo_pipeline.config.overrides import parse_set
    from perpo_pipeline.run import Run
    from perpo_pipeline.status.options import Options

    settings = [one for one in settings if one.value is not None]
    opened = read_config(
        config, sets, run=run, settings=settings, methods_are_known=methods_are_known
    )
    places = {k: v for k, v in (inputs or {}).items() if v is not None}
    given = Options(
        {one.dotted: one.as_typed for one in (*settings, *map(parse_set, sets or ()))},
        {artifact: f"--{artifact} {path}" for artifact, path in places.items()},
    )
    return Run(opened, out=out, inputs=places, quiet=quiet, options=given, allow_stale=allow_stale)


def choose_names(
    names: list[str], name: str | None, out: Path | None, *, option: str, what: str
) -> list[str]:
    """What a command runs over: the one that `option` names, or all of `names`."""
    if name is not None and name not in names:
        raise ConfigError(
            f"{option} {name}: this run has no such {what}{did_you_mean(name, names)}",
            fix=f"choose one of {', '.join(names)}",
        )
    chosen = names if name is None else [name]
    check_one_out(chosen, out, option=option, what=what)
    return chosen


def check_one_out(chosen: list[str], out: Path | None, *, option: str, what: str) -> None:
    """Raise if --out would hold the artifacts of several splits, methods or evaluations."""
    if out is not None and len(chosen) > 1:
        raise ConfigError(
            f"--out is one directory, for {len(chosen)} {what}s {chosen}",
            fix=f"choose one with {option}",
        )
