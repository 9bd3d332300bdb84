"""What the measured cells show: rows with intervals, chosen settings, differences of methods."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from math import isnan
from typing import Any

import numpy as np
import polars as pl

from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.evaluate.metric import Floats, Metric
from perpo_pipeline.evaluate.seeds import difference_over_seeds, holm
from perpo_pipeline.evaluate.statistics import mean_interval
from perpo_pipeline.evaluate.summarise import ALL, ANSWER_COLUMNS, QUESTION_COLUMNS, values_of
from perpo_pipeline.store.artifacts import Version, input_of
from perpo_pipeline.sweep.cells import Cell

LEVEL = 0.05
"""An adjusted p-value below it claims a difference (docs/evidence.md)."""
Row = dict[str, Any]
Chosen = Mapping[str, str]  # method -> its setting, as JSON


@dataclass(frozen=True)
class Measured:
    """One cell on one split: its METRICS row of the metric, and where that was read from."""

    cell: Cell
    split: str
    metric: Metric
    version: Version

    @cached_property
    def row(self) -> Row:
        """The METRICS row over the whole split."""
        rows = self.version.table().to_pylist()
        for row in rows:
            if row["name"] == self.metric.name and row["dataset"] == ALL:
                return dict(row)
        raise ArtifactError(
            f"these metrics have no {self.metric.name}",
            where=str(self.version.path),
            fix=f"remove the folder, then run: {self.version.remake()}",
        )

    @cached_property
    def answers(self) -> pl.DataFrame:
        """prompt_id, image and the metric's value of each prompt that has one, by prompt_id."""
        predictions = input_of(self.version, "predictions")
        questions = input_of(predictions, "prompts").table(columns=QUESTION_COLUMNS)
        settings = predictions.manifest["settings"]
        answers = predictions.table(columns=ANSWER_COLUMNS)
        values = values_of(
            answers,
            questions,
            [self.metric.name],
            reading=Reading.recorded(settings),
            normalise=settings.get("normalise", ()),
        )
        images = pl.DataFrame(questions).select("prompt_id", image="image_sha256")
        found = pl.DataFrame(answers.select(["prompt_id"])).with_columns(
            value=pl.Series(values[self.metric.name])
        )
        joined = found.join(images, on="prompt_id", how="left", maintain_order="left")
        return joined.filter(pl.col("value").is_not_nan()).sort("prompt_id")

    @property
    def adapter(self) -> str | None:
        """The fingerprint of the adapter; None of the base."""
        inputs = input_of(self.version, "predictions").manifest["inputs"]
        return inputs["adapter"]["fingerprint"] if "adapter" in inputs else None


def choose(measured: Sequence[Measured], metric: Metric) -> dict[str, str]:
    """The setting with the best mean over seeds of each method; the first one if several are."""
    sign = -1.0 if metric.higher_is_better is False else 1.0
    best: dict[str, tuple[float, str]] = {}
    for group in _groups(measured):
        mean = sign * float(np.mean([one.row["value"] for one in group]))
        cell = group[0].cell
        if cell.method not in best or mean > best[cell.method][0]:
            best[cell.method] = (mean, cell.setting_json)
    return {method: setting for method, (_, setting) in best.items()}


def sweep_rows(measured: Sequence[Measured], chosen: Chosen) -> list[Row]:
    """SWEEP rows: each cell, and after the cells of a setting the mean over its seeds."""
    rows = []
    for group in _groups(measured):
        rows += [_row(one, chosen) for one in group]
        if len(group) > 1 and (mean := _mean_row(group)) is not None:
            rows.append({**rows[-1], **mean})
    return rows


def _row(one: Measured, chosen: Chosen) -> Row:
    cell = one.cell
    return {
        "method": cell.method,
        "setting": cell.setting_json,
        "seed": cell.seed,
        "num_seeds": 0 if cell.seed is None else 1,
        "metric": one.metric.name,
        **{name: one.row[name] for name in ("value", "low", "high", "n")},
        "split": one.split,
        "is_selected": chosen.get(cell.method) == cell.setting_json,
        "metrics": one.version.fingerprint,
        "adapter": one.adapter,
    }


def _mean_row(group: Sequence[Measured]) -> Row:
    """The mean over seeds; its interval is that of each prompt's mean, n/a for pooled metrics."""
    found: Row = {"seed": None, "num_seeds": len(group), "metrics": None, "adapter": None}
    if group[0].metric.statistic is not None or not _same_prompts(group):
        mean = float(np.mean([one.row["value"] for one in group]))
        return found | {"value": mean, "low": float("nan"), "high": float("nan")}
    per_prompt = _by_seed(group).mean(axis=0)
    value, low, high = mean_interval(per_prompt, group[0].answers["image"].to_list())
    return found | {"value": value, "low": low, "high": high}


def compare_methods(
    measured: Sequence[Measured], chosen: Chosen, *, unclaimed: Collection[str] = ()
) -> list[Row]:
    """SEED_DIFFERENCES rows of all pairs of methods, each with its chosen setting, on one split.

    The better method of a pair comes first. Pairs that were not asked the same prompts, and
    metrics that are no mean over prompts, have no row. No difference to one of the methods
    `unclaimed` is claimed.
    """
    groups = [
        g for g in _groups(measured) if chosen.get(g[0].cell.method) == g[0].cell.setting_json
    ]
    rows = []
    for one, other in combinations(groups, 2):
        if one[0].metric.statistic is None and _same_prompts([*one, *other]):
            rows.append(_difference(one, other))
    for row, adjusted in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["p_adjusted"] = adjusted
        is_small = not isnan(adjusted) and adjusted < LEVEL
        row["is_claimed"] = is_small and not {row["better"], row["worse"]} & {*unclaimed}
    return rows


def _difference(one: Sequence[Measured], other: Sequence[Measured]) -> Row:
    metric, means = one[0].metric, [float(_by_seed(group).mean()) for group in (one, other)]
    if (means[0] < means[1]) != (metric.higher_is_better is False):
        one, other = other, one
    found = difference_over_seeds(
        _by_seed(one),
        _by_seed(other),
        one[0].answers["image"].to_list(),
        trained=(one[0].cell.seed is not None, other[0].cell.seed is not None),
    )
    numbers = {name: value for name, value in asdict(found).items() if name != "df"}
    return {
        "metric": metric.name,
        "better": one[0].cell.method,
        "worse": other[0].cell.method,
        **numbers,
        "seeds_better": _num_seeds(one),
        "seeds_worse": _num_seeds(other),
        "n": one[0].answers.height,
        "split": one[0].split,
    }


def _num_seeds(group: Sequence[Measured]) -> int:
    return 0 if group[0].cell.seed is None else len(group)


def _by_seed(group: Sequence[Measured]) -> Floats:
    """The metric of each prompt, `(seeds, n)`."""
    return np.stack([one.answers["value"].to_numpy() for one in group])


def _same_prompts(group: Sequence[Measured]) -> bool:
    first = group[0].answers["prompt_id"]
    return all(one.answers["prompt_id"].equals(first) for one in group[1:])


def _groups(measured: Sequence[Measured]) -> Iterator[list[Measured]]:
    """The seeds of each setting of each method on each split, in the order of the cells."""
    found: dict[tuple[str, str, str], list[Measured]] = {}
    for one in measured:
        key = (one.split, one.cell.method, one.cell.setting_json)
        found.setdefault(key, []).append(one)
    yield from found.values()
