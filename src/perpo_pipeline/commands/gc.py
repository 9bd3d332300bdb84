"""`perpo gc`."""

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


def gc(
    config: Config = DEFAULT_CONFIG,
    yes: Annotated[
        bool, typer.Option("--yes", help="remove the unused versions; default: only list them")
    ] = False,
    sets: Set = None,
    run: RunName = None,
    debug: Debug = False,
) -> None:
    """List or remove the versions that nothing refers to.

    Looks in the run's folder; removes only with --yes. A version is in use if a `current` file
    leads to it, directly or through the lineage.

    Example: perpo gc --config configs/demo.yaml

    Example: perpo gc --config configs/demo.yaml --yes
    """
    from perpo_pipeline.store.inspect import collect_garbage

    opened = open_run(config, sets, run=run)
    found = collect_garbage(opened.config.run_dir, remove=yes)
    for path in found:
        print(("removed " if yes else "unused  ") + str(path))
    if not (yes and found):
        opened.say(f"gc: {len(found)} unused" + "; --yes removes them" * bool(found))
