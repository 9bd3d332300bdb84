"""The artifact of a sweep: its rows, the differences of the methods, and the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from perpo_pipeline.config.section import Json
from perpo_pipeline.evaluate.metric import Metric
from perpo_pipeline.run import Console, Run
from perpo_pipeline.run import make as make_artifact
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.atomic import write_atomically
from perpo_pipeline.store.schemas import SEED_DIFFERENCES
from perpo_pipeline.store.writing import Recipe, Writer
from perpo_pipeline.sweep.cells import Cell, chosen_where_compared
from perpo_pipeline.sweep.edges import at_edge
from perpo_pipeline.sweep.file import SweepFile
from perpo_pipeline.sweep.results import Chosen, Measured, Row, compare_methods, sweep_rows

STAGE_VERSION = 1
CHOSEN_VERSION = 2  # of sweeps without report_on that choose: their differences are not claimed
PAGE = "sweep.html"
WORDS = ("title", "paper", "x")
"""Keys of the file that change the page alone; they count where they are given."""


@dataclass(frozen=True)
class Results:
    """All that a sweep has measured, and each method's chosen setting."""

    file: SweepFile
    cells: Sequence[Cell]
    measured: Sequence[Measured]
    chosen: Chosen
    metric: Metric
    is_quick: bool

    @cached_property
    def edges(self) -> list[str]:
        """A warning for each chosen value at the edge of what was tried; a quick version chooses
        nothing that counts."""
        if self.file.select_on is None or self.is_quick:
            return []
        return at_edge(self.cells, self.chosen, self.measured)

    @cached_property
    def unclaimed(self) -> list[str]:
        """The methods of which nothing is claimed."""
        return chosen_where_compared(self.file, self.cells)

    def settings(self) -> Json:
        """What decides the content of the artifact, beside the metrics that it is read from."""
        file = self.file
        words = {name: value for name in WORDS if (value := getattr(file, name)) is not None}
        return {
            "metric": self.metric.name,
            "select_on": file.select_on,
            "report_on": file.report_on,
            "report_cells": file.report_cells,
            "cells": [
                [one.cell.method, one.cell.setting_json, one.cell.seed] for one in self.measured
            ],
            **words,
            **({"select_seeds": file.select_seeds} if file.select_seeds is not None else {}),
            **({"quick": True} if self.is_quick else {}),
        }

    def differences(self) -> list[Row]:
        """SEED_DIFFERENCES rows."""
        split = self.file.report_on or self.file.select_on
        compared = [one for one in self.measured if one.split == split]
        return compare_methods(compared, self.chosen, unclaimed=self.unclaimed)


def write_sweep(results: Results, console: Console) -> Version:
    """Write the artifact, or find it; prints what to look at."""
    file, run = results.file, Run(results.cells[0].config, quiet=console.quiet)
    inputs = {
        f"{n:04d} {one.cell.method}@{one.split}": one.version
        for n, one in enumerate(results.measured)
    }
    notes = {
        "chosen": dict(results.chosen),
        "at_edge": results.edges,
        "file": file.model_dump(mode="json"),
    }
    settings = results.settings()
    version = CHOSEN_VERSION if results.unclaimed else STAGE_VERSION
    recipe = Recipe("sweep", file.sweep, "sweep", version, settings, inputs, notes)

    def work(writer: Writer) -> None:
        differences, rows = results.differences(), sweep_rows(results.measured, results.chosen)
        html = _page(results, rows, differences)
        write_atomically(writer.path / PAGE, lambda sink: sink.write(html.encode()))
        writer.write_part(0, differences, table=SEED_DIFFERENCES.name)
        writer.write_part(0, rows)

    made = make_artifact(run, recipe, work)
    for warning in results.edges:
        console.say(f"sweep {file.sweep}: warning: {warning}")
    return made


def _page(results: Results, rows: Sequence[Row], differences: Sequence[Row]) -> str:
    from perpo_pipeline.sweep.page import sweep_page  # imports Matplotlib

    return sweep_page(
        results.file,
        results.cells,
        results.metric,
        rows,
        differences,
        results.edges,
        is_quick=results.is_quick,
    )
