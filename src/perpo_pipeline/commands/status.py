"""`perpo status`."""

import textwrap
from typing import TYPE_CHECKING, Any

from perpo_pipeline import advice
from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    Config,
    Debug,
    Json,
    RunName,
    Set,
    read_config,
)
from perpo_pipeline.commands.output import print_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perpo_pipeline.config.run import RunConfig
    from perpo_pipeline.status.states import State

WIDTH = 80
_AGES = ((86_400, "d"), (3_600, "h"), (60, "min"))


def status(
    config: Config = DEFAULT_CONFIG,
    sets: Set = None,
    run: RunName = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the state of each artifact of a run.

    \b
    current      as the configuration says, and made from what is in use now
    stale        something differs: a setting, an input, a file of the data
    missing      not made yet
    under way    a process is writing it
    interrupted  begun; the same command goes on from what is there
    broken       its files cannot be read; perpo status then ends with code 2

    Writes nothing. What an option such as --min-margin asked for is current, and named.

    Example: perpo status --config configs/demo.yaml

    Example: perpo status --config configs/demo.yaml --set filter.min_margin=0.4 --json
    """
    from perpo_pipeline.status.states import states
    from perpo_pipeline.store.garbage import find_unused

    read = read_config(config, sets, run=run)
    found = states(read)
    listed = {one.path.resolve() for one in found if one.path is not None}
    unused = [one for one in find_unused(read.run_dir, 0.0) if one.path not in listed]
    if as_json:
        rows = [_row(one) for one in found]
        extra = [{"state": "unused", "path": str(u.path), "size_bytes": u.size} for u in unused]
        print_rows([*rows, *extra], lambda _: "", True)
    else:
        print(f"run {read.run} ({read.run_dir})")
        print("\n".join(_lines(found)))
        if unused:
            print(_summary_of_unused(unused))
        print(_next(read, found))
        if "rounds" in read.model_fields_set:
            print(f"rounds, each a run with a file of its own: {advice.command('iterate')}")
    for one in found:
        if one.error is not None:
            raise one.error


def _row(one: "State") -> dict[str, Any]:
    return {
        "artifact": one.node.artifact,
        "variant": one.node.variant,
        "stage": one.node.stage,
        "state": one.state,
        "why": list(one.why),
        "asked_for": list(one.asked),
        "path": None if one.path is None else str(one.path),
        "size_bytes": one.size,
        "age_s": None if one.age_s is None else round(one.age_s, 1),
    }


def _lines(found: "Sequence[State]") -> list[str]:
    """One line per artifact, what it differs in below it."""
    from perpo_pipeline.store.garbage import shown_size

    width = max(len(one.node.name) for one in found)
    lines = [f"{'artifact':{width}}  {'state':11}  {'size':>7}  {'age':>6}"]
    for one in found:
        size = shown_size(one.size) if one.path is not None and one.size else ""
        age = "" if one.age_s is None else _shown_age(one.age_s)
        line = f"{one.node.name:{width}}  {one.state:11}  {size:>7}  {age:>6}".rstrip()
        notes = [*one.why, *one.asked]
        if len(notes) == 1 and len(line) + 2 + len(notes[0]) <= WIDTH:
            line, notes = f"{line}  {notes[0]}", []
        lines.append(line)
        for text in notes:
            lines += textwrap.wrap(
                text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
            )
    return lines


def _shown_age(seconds: float) -> str:
    for unit, name in _AGES:
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(seconds, 0):.0f} s"


def _summary_of_unused(unused: "Sequence[Any]") -> str:
    from perpo_pipeline.store.garbage import shown_size

    count = f"{len(unused)} version{'s' * (len(unused) != 1)}"
    size = shown_size(sum(one.size for one in unused))
    return f"{count} ({size}) that nothing uses: {advice.command('gc')}"


def _next(config: "RunConfig", found: "Sequence[State]") -> str:
    """What to type next."""
    done = ("current", "under way", "broken")
    needed = {key for one in found for key in one.node.needs} | {("report", "default")}
    waiting = [one for one in found if one.state not in done and one.node.key in needed]
    if not waiting and any(one.state == "broken" for one in found):
        return "what is broken keeps the run from being up to date"
    if not waiting:
        busy = any(one.state == "under way" for one in found)
        return "a process is at work" if busy else "everything is up to date"
    first = advice.command(*waiting[0].node.words)
    several = len({one.node.stage for one in waiting}) > 1
    return f"next: {first}" + f"\nall:  {advice.command('run')}" * several
