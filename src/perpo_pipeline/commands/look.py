"""`perpo report`, `inspect`, `doctor`, `gc`, and the hidden `plan`."""

from pathlib import Path
from typing import Annotated

import typer

from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    Config,
    Debug,
    Out,
    Quiet,
    RunName,
    open_run,
)


def report(
    config: Config = DEFAULT_CONFIG,
    run: RunName = None,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write one self-contained HTML page that shows what changed.

    Example: perpo report --config configs/demo.yaml
    """
    from perpo_pipeline.report.write_report import report as report_stage

    opened = open_run(config, run=run, out=out, quiet=quiet)
    print(report_stage(opened).path / "report.html")


def inspect(
    directory: Annotated[Path, typer.Argument(help="an artifact, or one version of it")],
    rows: Annotated[int, typer.Option(help="rows to show")] = 3,
    verify: Annotated[
        bool, typer.Option("--verify", help="check the sha256 of every file")
    ] = False,
    debug: Debug = False,
) -> None:
    """Print an artifact: rows, schema version, lineage, settings, a few rows.

    Example: perpo inspect data/demo/preferences/train
    """
    from perpo_pipeline.store.inspect import describe

    print(describe(directory, rows=rows, verify=verify))


def doctor(debug: Debug = False) -> None:
    """Print what this machine can run, and the command that installs what is missing.

    Example: perpo doctor
    """
    from perpo_pipeline.doctor import examine

    print(examine())


def gc(
    config: Config = DEFAULT_CONFIG,
    yes: Annotated[bool, typer.Option("--yes", help="remove them; otherwise only list")] = False,
    run: RunName = None,
    debug: Debug = False,
) -> None:
    """List (or remove, with --yes) versions that no `current` file leads to.

    Example: perpo gc --config configs/demo.yaml --yes
    """
    from perpo_pipeline.store.inspect import collect_garbage

    opened = open_run(config, run=run)
    found = collect_garbage(opened.config.run_dir, remove=yes)
    for path in found:
        print(("removed " if yes else "unused  ") + str(path))
    if not (yes and found):
        opened.say(f"gc: {len(found)} unused" + "; --yes removes them" * bool(found))


def plan(config: Config = DEFAULT_CONFIG, debug: Debug = False) -> None:
    """Print the run's variants as Make variables (read by stages/*.mk).

    Example: perpo plan --config configs/demo.yaml
    """
    from perpo_pipeline.config.sources import source_files

    run = open_run(config).config
    sources = [str(file) for source in run.prepare.values() for file in source_files(source)]
    print(f"DATA := {run.run_dir}")
    print(f"SPLITS := {' '.join(run.prepare)}")
    print(f"SAMPLE_SPLIT := {run.sample.split}")
    print(f"EVAL_SPLIT := {run.eval.split}")
    print(f"ADAPTERS := {' '.join(run.train.variants())}")
    print(f"EVALUATED_ADAPTERS := {' '.join(m for m in run.eval_models() if m != 'base')}")
    print(f"EVALUATIONS := {' '.join(run.eval_variants())}")
    print(f"SOURCES := {' '.join(sources)}")
