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
    keep_days: Annotated[
        float,
        typer.Option(
            min=0,
            help="leave unfinished versions, those of a sweep that is not finished, and versions "
            "that an option such as --min-margin asked for, for this many days after they were "
            "written",
        ),
    ] = 7,
    sets: Set = None,
    run: RunName = None,
    debug: Debug = False,
) -> None:
    """List or remove the versions that nothing refers to.

    Looks in the run's folder; removes only with --yes. A version is in use if a `current` file
    leads to it, directly or through the lineage, in this run or in another one under the same
    data_root. Each line has the size, and the settings in which the version differs from the one in
    use.

    Example: perpo gc --config configs/demo.yaml

    Example: perpo gc --config configs/demo.yaml --keep-days 1 --yes
    """
    from perpo_pipeline.store.garbage import look_for_unused, shown_size

    opened = open_run(config, sets, run=run)
    found = look_for_unused(opened.config.run_dir, keep_days)
    gone = []
    for one in found:
        shown = f"{one.path}  {shown_size(one.size)}, {one.what}"
        if one.holder:
            print(f"held    {shown} (the run {one.holder} was made from it)")
        elif one.kept:
            print(f"left    {shown} ({one.kept})")
        elif yes and (why := one.remove()):
            print(f"left    {shown} ({why})")
        else:
            print(f"{'removed' if yes else 'unused '} {shown}")
            gone.append(one)
    total = shown_size(sum(one.size for one in gone))
    done = "removed" if yes else "unused"
    more = "; --yes removes them" if gone and not yes else ""
    opened.say(f"gc: {len(gone)} {done} ({total}){more}")
    if kept := sum(1 for one in found if one.kept):
        opened.say(f"gc: {kept} left for {keep_days:g} days (--keep-days)")
    if holders := sorted({one.holder for one in found if one.holder}):
        held = sum(1 for one in found if one.holder)
        opened.say(f"gc: {held} held by other runs: {', '.join(holders)}")
