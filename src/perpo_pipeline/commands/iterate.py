"""`perpo iterate`: further rounds on the model's own new samples."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    Config,
    Debug,
    Json,
    Quiet,
    RunName,
    Set,
    open_run,
)
from perpo_pipeline.commands.output import print_rows
from perpo_pipeline.commands.run import Given, duration, make_calls, refuse_launchers

if TYPE_CHECKING:
    from perpo_pipeline.config.model import ModelConfig
    from perpo_pipeline.rounds.round_files import Round
    from perpo_pipeline.run import Run
    from perpo_pipeline.status.calls import Call
    from perpo_pipeline.store.artifacts import Version


def iterate(
    config: Config = DEFAULT_CONFIG,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="print how much there is to make and about how long it takes"
        ),
    ] = False,
    num_processes: Annotated[
        int | None, typer.Option(help="processes of a training, one per GPU of this machine")
    ] = None,
    sets: Set = None,
    run: RunName = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train in rounds, each on new samples of the round before.

    A round samples prompts, scores, filters, trains an adapter with the model it began with as the
    reference, and is evaluated on rounds.select_on. If it gains by a paired test, its adapter is
    merged and the next round begins with that model; otherwise the rounds end. Then the base and
    all rounds are evaluated on rounds.report_on. Each round is a run with a file of its own in the
    run's folder. Stopped at any moment, the same command goes on from there. Prints a table and
    the path of a page.

    Example: perpo iterate --config configs/demo-rounds.yaml

    Example: perpo iterate --config configs/demo-rounds.yaml --dry-run

    Example: perpo iterate --config configs/mine.yaml --set rounds.num=2 --set rounds.prompts=same
    """
    from perpo_pipeline.rounds.iterate import PAGE
    from perpo_pipeline.rounds.iterate import iterate as make_rounds
    from perpo_pipeline.rounds.results import rounds_table

    refuse_launchers()
    opened = open_run(config, sets, run=run, quiet=quiet)
    if dry_run:
        from perpo_pipeline.rounds.estimate import dry_run_text

        print(dry_run_text(opened))
        return
    stages = _Stages(opened, config, sets, run, num_processes)
    started = time.monotonic()
    made = make_rounds(opened, stages.make, stages.merge)
    name = opened.config.run
    if stages.made:
        opened.say(f"iterate {name}: done in {duration(time.monotonic() - started)}")
    else:
        opened.say(f"iterate {name}: everything is up to date, nothing was run")
    print_rows(made.table().to_pylist(), rounds_table, as_json)
    if not as_json:
        print(made.path / PAGE)


class _Stages:
    """Makes what a run still needs, by the commands of the stages; counts what it made."""

    def __init__(
        self,
        opened: "Run",
        config: Path,
        sets: list[str] | None,
        run: str | None,
        num_processes: int | None,
    ) -> None:
        self.opened, self.config, self.sets, self.run = opened, config, sets, run
        self.num_processes, self.made = num_processes, 0

    def make(self, one: "Round | None", calls: "Sequence[Call]") -> "Run":
        """Make what is not current of these calls; advice names the file of the round."""
        quiet = self.opened.quiet
        own = (self.config, self.sets, self.run) if one is None else (one.file, None, None)
        opened = open_run(own[0], own[1], run=own[2], quiet=quiet)
        common = {"config": own[0], "sets": own[1], "run": own[2], "quiet": quiet}
        given = Given(common, self.num_processes, allow_stale=False)
        self.made += make_calls(opened, list(calls), given, says_nothing_to_do=False)
        return opened

    def merge(self, adapter: "Version", model: "ModelConfig", folder: Path) -> Path:
        """Merge an adapter, unless that is done; its own folder is named like its fingerprint.

        Raises `ArtifactError` if that folder was merged from other weights of the adapter.
        """
        from perpo_pipeline.merge.folder import doubt, find_merged

        place = folder / adapter.fingerprint
        if (found := find_merged(place, adapter)) is None:
            from perpo_pipeline.merge.merge_adapter import merge

            folder.mkdir(parents=True, exist_ok=True)
            merge(
                adapter.path,
                place,
                model=model.id,
                revision=model.revision,
                trust_remote_code=model.trust_remote_code,
                console=self.opened,
            )
            self.made += 1
        elif why := doubt(found):
            self.opened.say(f"merge {adapter.variant}: taken ({place}); {why}")
        return place
