"""`perpo run`: all stages of a run in one process, as far as they are not current."""

import contextlib
import gc
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from perpo_pipeline import advice
from perpo_pipeline.commands.evaluate import eval_command
from perpo_pipeline.commands.filter import filter_command
from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    AllowStale,
    Config,
    Debug,
    Quiet,
    RunName,
    Set,
    open_run,
)
from perpo_pipeline.commands.prepare import prepare
from perpo_pipeline.commands.report import report
from perpo_pipeline.commands.sample import sample
from perpo_pipeline.commands.score import score
from perpo_pipeline.commands.train import train
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.suggestions import did_you_mean

if TYPE_CHECKING:
    from perpo_pipeline.run import Run
    from perpo_pipeline.status.calls import Call
    from perpo_pipeline.status.pending import Pending

SHOWN, LONGEST = 3, 160  # reasons in a line, characters of a reason


@dataclass(frozen=True)
class Given:
    """The options of `perpo run` that the stages take."""

    common: dict[str, Any]
    num_processes: int | None
    allow_stale: bool

    @property
    def stale(self) -> dict[str, Any]:
        """The options of a stage that reads artifacts."""
        return {**self.common, "allow_stale": self.allow_stale}


def _train(given: Given, names: Sequence[str]) -> None:
    """Train the adapters one by one; with several processes, these get the command as typed."""
    words = ["train", *advice.current().of_run, *["--quiet"] * given.common["quiet"]]
    words += ["--allow-stale"] * given.allow_stale
    for name in names:
        typed = cast(typer.Context, SimpleNamespace(obj=[*words, "--method", name]))
        train(typed, method=name, num_processes=given.num_processes, **given.stale)


# How each stage is called: with the names of a call (status/calls.py).
STAGES: dict[str, Callable[[Given, Sequence[str]], None]] = {
    "prepare": lambda given, names: prepare(split=names[0], **given.common),
    "sample": lambda given, names: sample(**given.stale),
    "score": lambda given, names: score(**given.stale),
    "filter": lambda given, names: filter_command(**given.stale),
    "train": _train,
    "eval": lambda given, names: eval_command(evaluation=list(names), **given.stale),
    "report": lambda given, names: report(**given.stale),
}


def run_command(
    config: Config = DEFAULT_CONFIG,
    first: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STAGE",
            help="begin with this stage, such as filter; what it reads must be finished",
        ),
    ] = None,
    last: Annotated[
        str | None,
        typer.Option("--to", metavar="STAGE", help="end with this stage, such as train"),
    ] = None,
    num_processes: Annotated[
        int | None, typer.Option(help="processes of a training, one per GPU of this machine")
    ] = None,
    allow_stale: AllowStale = False,
    sets: Set = None,
    run: RunName = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Bring a run up to date: make what is missing or changed.

    Prints first what it will make and why, then makes it, stage by stage, as the single commands
    would; what is current is left alone. Stopped at any moment, the same command goes on from
    there. Prints the path of the page.

    Example: perpo run --config configs/demo.yaml

    Example: perpo run --config configs/demo.yaml --from filter --to train

    Example: perpo run --config configs/demo.yaml --set filter.min_margin=0.4
    """
    refuse_launchers()
    opened = open_run(config, sets, run=run, quiet=quiet, allow_stale=allow_stale)
    chosen = _choose(opened, first, last)
    common = {"config": config, "sets": sets, "run": run, "quiet": quiet}
    given = Given(common, num_processes, allow_stale)
    started = time.monotonic()
    made = make_calls(opened, chosen, given)
    if made:
        opened.say(f"run {opened.config.run}: done in {duration(time.monotonic() - started)}")
    if chosen[-1].stage == "report":
        print(_page(opened))


def _choose(run: "Run", first: str | None, last: str | None) -> "list[Call]":
    """The calls from one stage to another; what others make and these read must be as configured.

    Raises ConfigError if the stages are in the wrong order, `ArtifactError` for such an input.
    """
    from perpo_pipeline.status.calls import calls

    names = list(STAGES)
    for option, name in (("--from", first), ("--to", last)):
        if name is not None and name not in names:
            raise ConfigError(
                f"{option} {name}: no such stage{did_you_mean(name, names)}",
                fix=f"choose one of {', '.join(names)}",
            )
    begin, end = names.index(first or names[0]), names.index(last or names[-1])
    if begin > end:
        raise ConfigError(
            f"--from {first} comes after --to {last}", fix=f"the order is {', '.join(names)}"
        )
    every = calls(run.config)
    chosen = [call for call in every if begin <= names.index(call.stage) <= end]
    if last != "prepare":  # a split that nothing reads
        needed = {need for call in every for need in call.needs}
        idle = [c for c in chosen if c.stage == "prepare" and not {n.key for n in c.made} & needed]
        chosen = [call for call in chosen if call not in idle]
    own = {node.key for call in chosen for node in call.made}
    read = dict.fromkeys(need for call in chosen for need in call.needs if need not in own)
    run.all_latest(list(read))
    return chosen


def make_calls(
    run: "Run", chosen: "list[Call]", given: Given, *, says_nothing_to_do: bool = True
) -> int:
    """Make what is not current; returns how many calls were made."""
    from perpo_pipeline.status.pending import find_pending

    todo = find_pending(run.config, chosen)
    if todo or says_nothing_to_do:
        _announce(run, todo, len(chosen))
    _name_what_options_asked_for(run, chosen, todo)
    made = 0
    for place, planned in enumerate(todo, start=1):
        # What was made anew may have the content that it had: then the rest is current.
        pending = find_pending(run.config, [planned.call])
        if not pending:
            run.say(f"run {place}/{len(todo)}: {planned.call.title} is up to date")
            continue
        run.say(f"run {place}/{len(todo)}: {planned.call.title}")
        with contextlib.redirect_stdout(io.StringIO()):  # the paths: each message has its own
            STAGES[planned.call.stage](given, pending[0].names)
        _free_memory()
        made += 1
    return made


def _announce(run: "Run", todo: "list[Pending]", calls: int) -> None:
    where = f"run {run.config.run} ({run.config.run_dir.resolve()})"
    if not todo:
        run.say(f"{where}: everything is up to date, nothing was run")
        return
    width = max(len(one.call.title) for one in todo)
    run.say(f"{where}: {len(todo)} of {calls} calls of stages are to be made")
    for one in todo:
        more = [f"and {len(one.why) - SHOWN} more"] * (len(one.why) > SHOWN)
        why = [w if len(w) <= LONGEST else f"{w[: LONGEST - 3]}..." for w in one.why[:SHOWN]]
        run.say(f"  {one.call.title:<{width}}  {'; '.join([*why, *more])}")


def _name_what_options_asked_for(run: "Run", chosen: "list[Call]", todo: "list[Pending]") -> None:
    """Name what is left as earlier options asked for it; a stage that is called names its own."""
    from perpo_pipeline.status.check import Check
    from perpo_pipeline.status.refusal import first_command

    left = [call for call in chosen if call not in [one.call for one in todo]]
    accepted = Check(run.config).find(n.key for call in left for n in call.made).accepted.values()
    for one in accepted:
        run.say(f"run: leaves {one}")
    if accepted:
        again = first_command([one.reason for one in accepted])
        run.say(f"run: to make it as the file says: {again}, then the same command")


def _free_memory() -> None:
    """Give back what a stage's model held, so that the next stage's model finds it free."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _page(run: "Run") -> Path:
    return run.latest("report").path / "report.html"


def duration(seconds: float) -> str:
    """Seconds in words: `2 min 5 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def refuse_launchers() -> None:
    """Raise ConfigError under torchrun or an srun of several tasks: all would run all stages."""
    from perpo_pipeline.train.processes import placed_by_launcher

    placed = placed_by_launcher(os.environ)
    if placed is not None and int(placed["WORLD_SIZE"]) > 1:
        raise ConfigError(
            f"a launcher has started {placed['WORLD_SIZE']} processes of perpo run",
            fix="start it once, with --num-processes for the training; on several nodes, run the "
            f"stages one by one ({advice.page('many-gpus')})",
        )
