"""What several commands share: their options, and how they open a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perpo_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from perpo_pipeline.run import Run
    from perpo_pipeline.store.artifacts import Version

Config = Annotated[Path, typer.Option("--config", help="the run's YAML file")]
RunName = Annotated[
    str | None, typer.Option("--run", help="name of the run, instead of the file's")
]
Out = Annotated[Path | None, typer.Option("--out", help="directory to write to, outright")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bars (for logs)")]
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]
Variant = Annotated[str | None, typer.Option("--variant", help="one only; default: all of the run")]
Prompts = Annotated[Path | None, typer.Option(help="prompts artifact, instead of the run's")]
Samples = Annotated[Path | None, typer.Option(help="samples artifact, instead of the run's")]
Scores = Annotated[Path | None, typer.Option(help="scores artifact, instead of the run's")]
Preferences = Annotated[Path | None, typer.Option(help="preferences artifact, not the run's")]
Model = Annotated[str | None, typer.Option(help="hub id, directory, or `testbed`")]
DEFAULT_CONFIG = Path("configs/demo.yaml")


def open_run(
    config: Path,
    *,
    run: str | None = None,
    out: Path | None = None,
    quiet: bool = False,
    settings: Mapping[Any, Any] | None = None,
    inputs: dict[str, Path | None] | None = None,
) -> "Run":
    """Load the run's file under the flags that were given (None: not given)."""
    from perpo_pipeline.config.file import load_config
    from perpo_pipeline.run import Run

    wanted: dict[Any, Any] = {"run": run, **(settings or {})}
    overrides = {k: v for k, v in wanted.items() if v is not None}
    given = {k: v for k, v in (inputs or {}).items() if v is not None}
    return Run(load_config(config, overrides), out=out, inputs=given, quiet=quiet)


def each_variant(names: list[str], variant: str | None, out: Path | None) -> list[str]:
    """The variants that a command runs over: one by name, or all."""
    chosen = names if variant is None else [variant]
    if variant is not None and variant not in names:
        raise ConfigError(f"no variant '{variant}' in this run", fix=f"choose one of {names}")
    if out is not None and len(chosen) > 1:
        raise ConfigError(
            f"--out is one directory, for {len(chosen)} variants {chosen}",
            fix="choose one with --variant",
        )
    return chosen


def print_paths(versions: "list[Version]") -> None:
    for version in versions:
        print(version.path)
