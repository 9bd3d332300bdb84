"""How much there is to do: prompts of each split, completions, and the lists to expect."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import polars as pl
import pyarrow as pa

from perpo_pipeline.config.by_task import fit_to_tasks, values_of
from perpo_pipeline.config.sources import ReferSource
from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.filter.margins import list_margins, reasons_to_drop
from perpo_pipeline.planning.hardware import published
from perpo_pipeline.prepare.prepare_prompts import survey
from perpo_pipeline.run import Run
from perpo_pipeline.status.check import Check
from perpo_pipeline.status.graph import Key
from perpo_pipeline.store.artifacts import Version, input_of, open_version
from perpo_pipeline.store.schemas import PROMPTS, SAMPLES, SCORES

LOOKED_AT = 64  # prompts whose tokens are counted
SCORE_COLUMNS = [*SAMPLES.role("key"), *SCORES.role("measured")]
Row = dict[str, Any]


@dataclass(frozen=True)
class Split:
    """The prompts of one split: how many (None: unknown), why so, and the rows of some of them."""

    name: str
    prompts: int | None
    how: str
    uses: tuple[str, ...]
    rows: list[Row] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class Lists:
    """The lists that `perpo filter` keeps: between `low` and `high` (None: unknown).

    `most_of` has the most lists of each task, as far as that is known.
    """

    low: int | None
    high: int | None
    how: str
    most_of: Mapping[str, int] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        return self.low is not None and self.low == self.high

    def most_for(self, settings: TrainSettings) -> int:
        """The most lists of the tasks that a training learns."""
        high = self.high or 0
        if settings.tasks is None:
            return high
        return min(high, sum(self.most_of.get(task, high) for task in settings.tasks))


def count_splits(run: Run) -> list[Split]:
    """The prompts of every split of the configuration, from the artifact or else its source."""
    return [_count_split(run, name) for name in run.config.prepare]


def _count_split(run: Run, name: str) -> Split:
    uses = _uses(run, name)
    if (made := finished(run, "prompts", name)) is not None:
        rows = _some_rows(made) if uses else []
        return Split(name, made.manifest["rows"], "prepared", uses, rows)
    source = run.config.prepare[name]
    try:
        found = survey(run, name, LOOKED_AT)
    except ConfigError as error:  # the files are not here
        known = _published_number(source, name)
        if known is None:
            why = f"unknown: {error.what}" + (f" ({error.where})" if error.where else "")
            return Split(name, None, why, uses)
        return Split(name, known[0], f"{known[1]}; not counted: {error.what}", uses)
    how = (
        "to be rendered" if source.source == "testbed" else f"counted in the {source.source} files"
    )
    return Split(name, found.prompts, how, uses, found.rows)


def _uses(run: Run, name: str) -> tuple[str, ...]:
    config = run.config
    sampled = ("sampled",) if name == config.sample.split else ()
    return (*sampled, "evaluated") if name in config.eval.splits else sampled


def _some_rows(prompts: Version) -> list[Row]:
    """Rows that are spread over the first part and, where it has one task of several, the last."""
    rows = _spread(prompts.part(0, list(PROMPTS.columns.names)))
    tasks = set(prompts.table(columns=["task"])["task"].unique().to_pylist())
    if tasks != {row["task"] for row in rows}:
        rows += _spread(prompts.part(-1, list(PROMPTS.columns.names)))
    return rows


def _spread(part: pa.Table) -> list[Row]:
    step = max(1, part.num_rows // LOOKED_AT)
    rows: list[Row] = part.take(list(range(0, part.num_rows, step))[:LOOKED_AT]).to_pylist()
    return rows


def task_by_task(rows: Sequence[Row]) -> list[Row]:
    """The rows with their tasks taking turns, so that the first ones have as many of each.

    The sources of a split follow each other: the first rows alone may all be boxes.
    """
    if len(tasks := dict.fromkeys(row["task"] for row in rows)) == 1:
        return list(rows)
    parts = [[row for row in rows if row["task"] == task] for task in tasks]
    return [row for turn in zip_longest(*parts) for row in turn if row is not None]


def _published_number(source: Any, name: str) -> tuple[int, str] | None:
    """The number that the settings or the official splits give, and where it is from."""
    if not isinstance(source, ReferSource):
        return None
    if source.per_dataset is not None:
        number = source.per_dataset * len(source.datasets)
        return number, f"per_dataset {source.per_dataset:,} x {len(source.datasets)} datasets"
    official = published()["refer"]
    splits: list[str] = [*source.splits] if source.splits else [name]
    numbers = [official[d].get(s) for d in source.datasets for s in splits]
    if not numbers or None in numbers:
        return None
    return sum(numbers), f"of {official['source']}"


def finished(run: Run, artifact: str, variant: str) -> Version | None:
    """The version in use; None if there is none that the configuration describes.

    Raises `ArtifactError` for one that is damaged.
    """
    if artifact in run.inputs:
        return open_version(run.inputs[artifact], artifact)
    if not is_up_to_date(Check(run.config), [(artifact, variant)]):
        return None
    return open_version(run.place(artifact, variant), artifact)


def is_up_to_date(check: Check, keys: Sequence[Key]) -> bool:
    """Whether all of these are there, and as the configuration and their lineage say."""
    if not all(check.in_use(key) for key in keys):
        return False
    return all(reason.kind == "missing" for reason in check.find(keys).silent.values())


def expect_lists(run: Run, sampled: Split) -> Lists:
    """What filter keeps of the scores that exist, or else the most that it could keep."""
    split = run.config.sample.split
    if (scores := finished(run, "scores", split)) is not None:
        of_task = _kept(run, scores)
        kept = sum(of_task.values())
        return Lists(kept, kept, "what filter keeps of the scores that are there", of_task)
    if sampled.prompts is None:
        return Lists(None, None, "unknown, as the prompts are")
    caps = values_of(run.config.filter.max_lists)
    most = sampled.prompts if None in caps else min(sum(caps), sampled.prompts)
    bound = "the prompts" if most == sampled.prompts else "filter.max_lists"
    config = run.config.filter.max_lists
    caps_of = config.items() if isinstance(config, Mapping) else ()
    most_of: dict[str, int] = {task: cap for task, cap in caps_of if cap is not None}
    return Lists(0, most, f"unknown until answers are scored; at most {bound}", most_of)


def _kept(run: Run, scores: Version) -> dict[str, int]:
    prompts = input_of(scores, "prompts")
    config = fit_to_tasks(run.config.filter, "filter", prompts)
    rows = [pl.DataFrame(part) for part in scores.batches(SCORE_COLUMNS)]
    datasets = prompts.table(columns=["prompt_id", "dataset", "task"])
    lists = list_margins(pl.concat(rows), config).join(
        pl.DataFrame(datasets), on="prompt_id", how="left", maintain_order="left"
    )
    kept = lists.filter(reasons_to_drop(lists, config).is_null())["task"]
    tasks = lists["task"].unique(maintain_order=True)
    return {str(task): int((kept == task).sum()) for task in tasks}
