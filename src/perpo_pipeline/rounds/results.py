"""What each round reached: its rows, and the table that is printed."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.evaluate.compare import compare_versions, p_text
from perpo_pipeline.evaluate.metric import Metric
from perpo_pipeline.evaluate.metrics import find_metric, lower_is_better
from perpo_pipeline.lines import aligned
from perpo_pipeline.rounds.round_files import Round
from perpo_pipeline.run import Console
from perpo_pipeline.store.artifacts import Version, input_of
from perpo_pipeline.store.list_prompts import new_lists_by_task
from perpo_pipeline.vlm.adapters import weights_sha256

Row = dict[str, Any]


@dataclass(frozen=True)
class Reached:
    """One model of the chain: the base (`round` None, no adapter), or what a round made.

    `base` identifies the model that was sampled and trained on, `merged` the one that came of it.
    `metrics` are by split. `lists`, `samples` and `prompts` are the round's own.
    """

    title: str
    number: int | None
    round: Round
    base: str
    metrics: Mapping[str, Version]
    adapter: Version | None = None
    merged: str | None = None

    @property
    def counts(self) -> Row:
        """How many prompts, samples and lists the round had."""
        names = {"prompts": "prompts", "samples": "samples", "lists": "preferences"}
        if self.adapter is None:
            return {f"num_{name}": 0 for name in names}
        prompts = input_of(self.adapter, "prompts")
        lists = self.adapter.manifest["inputs"].get("preferences")
        if lists is None:
            return {"num_prompts": prompts.manifest["rows"], "num_samples": 0, "num_lists": 0}
        kept = input_of(self.adapter, "preferences")
        return {
            "num_prompts": prompts.manifest["rows"],
            "num_samples": input_of(kept, "samples").manifest["rows"],
            "num_lists": kept.manifest["rows"],
        }

    @property
    def new_lists(self) -> Counter[str]:
        """How many lists the round has sampled, by task; its others are of earlier rounds."""
        if self.adapter is None or "preferences" not in self.adapter.manifest["inputs"]:
            return Counter()
        return new_lists_by_task(input_of(self.adapter, "preferences"))


@dataclass(frozen=True)
class Gain:
    """A paired difference in the metric, and whether it is a gain."""

    against: str
    row: Row
    gains: bool


def compare(
    better: Reached,
    worse: Reached,
    split: str,
    metric: Metric,
    alpha: float | None,
    *,
    writes: bool = True,
) -> Gain:
    """Compare two models on the same prompts, as `perpo compare`.

    The comparison is kept in the round's folder if `writes`.
    """
    pair = [input_of(one.metrics[split], "predictions") for one in (better, worse)]
    out = better.round.config.run_dir / "comparison" / f"{split}-against-{_word(worse.title)}"
    console = _Silent(quiet=True)
    rows = compare_versions(pair[0], pair[1], out=out if writes else None, console=console)
    row = next((row for row in rows if row["metric"] == metric.name), None)
    if row is None:
        raise ArtifactError(
            f"the comparison has no row of {metric.name}",
            where=str(out),
            fix="remove it, then run the same command again",
        )
    sign = -1 if metric.higher_is_better is False else 1
    is_sure = alpha is None or row["p_value"] < alpha
    return Gain(worse.title, row, sign * row["difference"] > 0 and is_sure)


class _Silent(Console):
    def say(self, message: str) -> None:
        """Print nothing: the table has the comparison."""


def _word(title: str) -> str:
    return title.replace(" ", "-")


def rows_of(
    reached: Sequence[Reached],
    gains: Mapping[tuple[str, str], Gain],
    metric: Metric,
    chosen: str,
) -> list[Row]:
    """ROUNDS rows: each model on each of its splits; `gains` by title and split."""
    return [
        _row(one, split, metric, gains.get((one.title, split)), one.title == chosen)
        for split in dict.fromkeys(split for one in reached for split in one.metrics)
        for one in reached
        if split in one.metrics
    ]


def _row(one: Reached, split: str, metric: Metric, gain: Gain | None, is_chosen: bool) -> Row:
    measured = one.metrics[split]
    found = value_of(measured, metric)
    names = {"difference": "difference", "low": "difference_low", "high": "difference_high"}
    names |= {"p_value": "p_value", "test": "test"}
    compared = {new: None if gain is None else gain.row[old] for old, new in names.items()}
    adapter = one.adapter
    return {
        "round": one.number,
        "name": one.title,
        "split": split,
        "metric": metric.name,
        **{key: found[key] for key in ("value", "low", "high", "n")},
        "against": None if gain is None else gain.against,
        **compared,
        "gains": None if gain is None else gain.gains,
        "is_chosen": is_chosen,
        **one.counts,
        "model": one.base,
        "merged": one.merged,
        "adapter": None if adapter is None else adapter.fingerprint,
        "adapter_sha256": None if adapter is None else weights_sha256(adapter),
        "metrics": measured.fingerprint,
    }


def value_of(metrics: Version, metric: Metric) -> Row:
    """The metric of the whole split, as the artifact has it."""
    rows = metrics.table().to_pylist()
    return next(
        row
        for row in rows
        if row["name"] == metric.name and row["dataset"] == "all" and row["slice_column"] is None
    )


def rounds_table(rows: Sequence[Row]) -> str:
    """The rows as text: a line per model and split, differences in points of the unit."""
    metric = find_metric(rows[0]["metric"])
    unit = metric.unit
    symbol = f", {unit.symbol}" if unit.symbol else ""
    text = []
    for split in dict.fromkeys(row["split"] for row in rows):
        own = [row for row in rows if row["split"] == split]
        lines = [["on " + split, metric.name + symbol, "95 % interval", "lists", "samples"]]
        lines[0] += ["difference", "95 % interval", "p", ""]
        for row in own:
            interval = f"[{unit.number(row['low'])}, {unit.number(row['high'])}]"
            counts = ["-", "-"]
            if row["adapter"] is not None:
                counts = [f"{row['num_lists']:,}", f"{row['num_samples']:,}"]
            lines.append([row["name"], unit.number(row["value"]), interval, *counts, *_paired(row)])
        text += [*aligned(lines), f"{own[0]['n']:,} prompts", ""]
    lower = lower_is_better([metric.name])
    return "\n".join([*text[:-1], *([lower] if lower else [])])


def _paired(row: Row) -> list[str]:
    if row["against"] is None:
        return ["-", "-", "-", _chosen(row)]
    unit = find_metric(row["metric"]).unit
    return [
        f"{unit.signed(row['difference'])} to {row['against']}",
        f"[{unit.signed(row['difference_low'])}, {unit.signed(row['difference_high'])}]",
        p_text(row["p_value"]),
        _chosen(row),
    ]


def _chosen(row: Row) -> str:
    return "chosen" if row["is_chosen"] else ""
