"""`perpo compare`: two models' predictions on the same prompts, pair by pair."""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from perpo_pipeline.config.evaluations import read_evaluation
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.evaluate.metric import Metric
from perpo_pipeline.evaluate.metrics import (
    METRICS,
    find_metric,
    lower_is_better,
    task_of_prompt,
)
from perpo_pipeline.evaluate.prediction_files import INDISTINCT
from perpo_pipeline.evaluate.statistics import compare_paired, paired_difference_interval
from perpo_pipeline.rewards.builtin import AUTO
from perpo_pipeline.run import DEFAULT, Console, make_at
from perpo_pipeline.store.artifacts import Version, input_of, open_version
from perpo_pipeline.store.schemas import PREDICTIONS, PROMPTS
from perpo_pipeline.store.writing import Recipe, Writer

STAGE_VERSION = 1

Row = dict[str, Any]
Floats = npt.NDArray[np.float64]

TRUTH = PROMPTS.pick("prompt_id", "image_sha256", "more_image_facts", "box_image", role="truth")


def compare_predictions(
    better: Version, worse: Version, *, num_resamples: int = 10_000
) -> list[Row]:
    """COMPARISON rows: `better` - `worse` in every compared metric of two `predictions` artifacts.

    The metrics are those of METRICS whose `compared_on` names the prompts' task (`ap50` and `miou`
    for one box, `mean_set_iou` for several, `edit_distance` for pages and short answers, `accuracy`
    for POPE); on all other prompts it is `mean_reward`. Prompts that share an image are drawn
    together. Raises `ArtifactError` unless both have the same prompts, with the same truth, and the
    same reward.
    """
    _check_rewards(better, worse)
    rows = _paired(better, worse)
    _check_truth(rows, better, worse)
    facts = _facts(rows, better)
    names = _names(better, worse)
    found = []
    for metric, where in _compared(facts, better.manifest["settings"].get("reward")):
        chosen = facts.filter(where)
        if chosen.height:
            ours, theirs = (metric.from_rewards(chosen[side].to_numpy()) for side in ("a", "b"))
            compared = paired_row(ours, theirs, chosen["image"].to_list(), num_resamples)
            found.append({"metric": metric.name, "better": names[0], "worse": names[1], **compared})
    return found


def compare_versions(
    better: Version, worse: Version, *, out: Path | None, console: Console
) -> list[Row]:
    """As `compare_predictions`; with `out` the rows are also written there, as `comparison`."""
    if note := _order_note(better, worse):
        console.say(f"compare: {note}")
    if out is None:
        return compare_predictions(better, worse)
    settings = {"metrics": [name for name, metric in METRICS.items() if metric.compared_on]}
    inputs = {"better": better, "worse": worse}
    recipe = Recipe("comparison", DEFAULT, "compare", STAGE_VERSION, settings, inputs)

    def work(writer: Writer) -> None:
        writer.write_part(0, compare_predictions(better, worse))

    rows: list[Row] = make_at(out, recipe, work, console).table().to_pylist()
    return rows


def open_predictions(path: Path) -> Version:
    """Open a `predictions` artifact by its directory, or by the --out directory that holds it."""
    inside = path / "predictions"
    place = inside if inside.is_dir() else path
    if not place.exists() and (named := _with_a_split(place)):
        raise ArtifactError(
            "predictions have the name of a model and a split",
            where=str(path),
            fix=f"give one of {', '.join(named)}",
        )
    return open_version(place, "predictions")


def _with_a_split(place: Path) -> list[str]:
    """The directories beside `place` that are named like it and have a split in their name."""
    if not place.parent.is_dir():
        return []
    beside = [(one, read_evaluation(one.name)) for one in sorted(place.parent.iterdir())]
    return [str(one) for one, asked in beside if asked.split and asked.shown == place.name]


def paired_row(ours: Floats, theirs: Floats, images: Sequence[Hashable], num_resamples: int) -> Row:
    """The numbers of a COMPARISON row: two systems' values `(n,)` on the same prompts."""
    difference, low, high = paired_difference_interval(
        ours, theirs, clusters=images, num_resamples=num_resamples
    )
    p_value, test = compare_paired(ours, theirs, images, num_resamples)
    return {
        "difference": difference,
        "low": low,
        "high": high,
        "p_value": p_value,
        "test": test,
        "n": len(images),
    }


def comparison_table(rows: Sequence[Row]) -> str:
    """The rows as text, a line each; differences and 95 % intervals in points of the unit.

    A last line names metrics for which lower is better.
    """
    lines = [["metric", "points", "95 % interval", "p", "test", "n", "difference"]]
    for row in rows:
        unit = find_metric(row["metric"]).unit
        lines.append(
            [
                row["metric"],
                unit.signed(row["difference"]),
                f"[{unit.signed(row['low'])}, {unit.signed(row['high'])}]",
                p_text(row["p_value"]),
                row["test"],
                f"{row['n']:,}",
                f"{row['better']} - {row['worse']}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    note = lower_is_better(list(dict.fromkeys(row["metric"] for row in rows)))
    return "\n".join([*text, *([f"{note}; there a negative difference is a gain"] if note else [])])


def p_text(p_value: float) -> str:
    """A p-value with three decimals: `< 0.001` if it is smaller, n/a for NaN."""
    if p_value != p_value:
        return "n/a"
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _check_rewards(a: Version, b: Version) -> None:
    rewards = [version.manifest["settings"].get("reward") for version in (a, b)]
    if rewards[0] != rewards[1]:
        raise ArtifactError(
            f"the predictions have different rewards: {rewards[0]} and {rewards[1]}",
            where=f"{a.path} and {b.path}",
            fix="evaluate both with the same reward",
        )
    forms = [version.manifest["settings"].get("normalise", []) for version in (a, b)]
    if forms[0] != forms[1]:
        named = [", ".join(names) or "none" for names in forms]
        raise ArtifactError(
            f"the predictions compare different normal forms of texts: {named[0]} and {named[1]}",
            where=f"{a.path} and {b.path}",
            fix="measure both with the same eval.normalise (perpo measure: --normalise)",
        )


def _paired(a: Version, b: Version) -> pl.DataFrame:
    """prompt_id, the rewards `a` and `b`, and image_prompt_id, in the order of the first."""
    columns = PREDICTIONS.pick("prompt_id", "reward", "image_prompt_id")
    tables = [pl.DataFrame(version.table(columns=columns)) for version in (a, b)]
    for table, version in zip(tables, (a, b), strict=True):
        if table["prompt_id"].is_duplicated().any():
            raise ArtifactError(
                "a prompt is answered twice",
                where=str(version.path),
                fix=f"remove it and run: {version.remake()}",
            )
    first, second = tables
    only = [
        one.join(other, on="prompt_id", how="anti").height
        for one, other in ((first, second), (second, first))
    ]
    if any(only):
        raise _other_prompts(first, second, only, (a, b))
    if not first.height:
        raise ArtifactError("no predictions to compare", where=str(a.path))
    other = second.select("prompt_id", b="reward")
    if any("task" in version.manifest["settings"] for version in (a, b)):
        _check_images(first, second, a, b)
    return first.rename({"reward": "a"}).join(
        other, on="prompt_id", how="left", maintain_order="left"
    )


def _other_prompts(
    first: pl.DataFrame,
    second: pl.DataFrame,
    only: Sequence[int],
    versions: tuple[Version, Version],
) -> ArtifactError:
    """The error for predictions of different prompts, in both or in one of them."""
    different = (
        f"the predictions have different prompts: {only[0]} of {first.height} are only in the "
        f"first, {only[1]} of {second.height} only in the second"
    )
    fix = "evaluate both on the same prompts"
    if any("task" in version.manifest["settings"] for version in versions):
        rows = first.with_row_index("row", 1).join(second, on="prompt_id", how="anti")["row"]
        if len(rows):
            different += f"; row {rows.to_list()[0]} of the first is the first of these"
        fix = (
            "measure the same rows in both files, with the same truth; rows without an `id` are "
            "known by their line, so files with the same questions in a different order need an "
            "`id` on each line"
        )
    return ArtifactError(
        different, where=" and ".join(str(version.path) for version in versions), fix=fix
    )


def _order_note(a: Version, b: Version) -> str | None:
    """What to know where only their lines pair some rows of two measured files, or None."""
    rows = max(version.manifest.get("counts", {}).get(INDISTINCT, 0) for version in (a, b))
    if not rows:
        return None
    return (
        f"{rows:,} rows have no `id` and the truth of other rows, so they are paired by their "
        "lines: this is right only if both files ask their questions in the same order"
    )


def _check_images(first: pl.DataFrame, second: pl.DataFrame, a: Version, b: Version) -> None:
    """Refuse files that name different images for the same row."""
    both = first.join(second, on="prompt_id", suffix="_b")
    differing = both.filter(pl.col("image_prompt_id") != pl.col("image_prompt_id_b"))
    if differing.height:
        raise ArtifactError(
            f"{differing.height} rows name different images in the two files, first "
            f"{differing['prompt_id'][0]}",
            where=f"{a.path} and {b.path}",
            fix="give the same `image` in both files, or in neither",
        )


def _check_truth(rows: pl.DataFrame, a: Version, b: Version) -> None:
    """Refuse prompts with equal ids whose image or truth differs.

    For predictions from files the id is made from the truth, so nothing can differ.
    """
    if any("task" in version.manifest["settings"] for version in (a, b)):
        return
    prompts = [input_of(version, "prompts") for version in (a, b)]
    if prompts[0].fingerprint == prompts[1].fingerprint:
        return
    first, second = (
        {row["prompt_id"]: row for row in version.table(columns=TRUTH).to_pylist()}
        for version in prompts
    )
    differing = [key for key in rows["prompt_id"] if first.get(key) != second.get(key)]
    if differing:
        raise ArtifactError(
            f"{len(differing)} prompts have a different image or truth in the two, first "
            f"{differing[0]}",
            where=f"{prompts[0].path} and {prompts[1].path}",
            fix="evaluate both on the same prompts artifact",
        )


def _facts(rows: pl.DataFrame, version: Version) -> pl.DataFrame:
    """The rows with their task, as METRICS names it, and their image.

    Both come from the prompts in the lineage; predictions of a file have no prompts there and hold
    their task and images themselves.
    """
    task = version.manifest["settings"].get("task")
    if task is not None:
        return rows.with_columns(task=pl.lit(task), image="image_prompt_id")
    columns = PROMPTS.pick("prompt_id", "task", "image_sha256", role="truth")
    prompts = pl.DataFrame(input_of(version, "prompts").table(columns=columns)).select(
        "prompt_id", task=task_of_prompt(), image="image_sha256"
    )
    joined = rows.join(prompts, on="prompt_id", how="left", maintain_order="left")
    if joined["task"].null_count():
        raise ArtifactError(
            f"{joined['task'].null_count()} predictions have no prompt in their lineage",
            where=str(version.path),
            fix=f"remove it and run: {version.remake()}",
        )
    return joined


def _compared(facts: pl.DataFrame, reward: Any) -> list[tuple[Metric, pl.Series]]:
    """Each compared metric with a mask of its rows; every row is in at least one mask.

    Other rewards than the task's own are compared as `mean_reward`: their meaning is unknown.
    """
    is_own = reward in (None, {AUTO: 1.0})
    metrics = [metric for metric in METRICS.values() if metric.compared_on]
    found = [(metric, facts["task"].is_in(metric.compared_on) & is_own) for metric in metrics]
    named = pl.Series([False] * facts.height)
    for _, where in found:
        named |= where
    return [*found, (METRICS["mean_reward"], ~named)]


def _names(a: Version, b: Version) -> tuple[str, str]:
    """The variants' names, followed by their fingerprints if the names are equal."""
    if a.variant != b.variant:
        return a.variant, b.variant
    return f"{a.variant} {a.fingerprint}", f"{b.variant} {b.fingerprint}"
