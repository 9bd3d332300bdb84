"""Two sets of predictions on the same prompts, pair by pair (`perpo compare`)."""

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.evaluate.metrics import right
from perpo_pipeline.evaluate.pope import TASK as POPE
from perpo_pipeline.evaluate.statistics import compare_paired, paired_difference_interval
from perpo_pipeline.rewards.choice import AUTO, asks_for_set
from perpo_pipeline.run import DEFAULT, Console, make_at
from perpo_pipeline.store.artifacts import Recipe, Version, Writer, input_of, open_version
from perpo_pipeline.store.schemas import PREDICTIONS, PROMPTS

STAGE_VERSION = 1

Row = dict[str, Any]
Floats = npt.NDArray[np.float64]

TRUTH = ["prompt_id", "image_sha256", "gt_text", "gt_box", "gt_boxes", "gt_polygon"]


def compare_predictions(
    better: Version, worse: Version, *, num_resamples: int = 10_000
) -> list[Row]:
    """COMPARISON rows: `better` - `worse` in every metric of two `predictions` artifacts.

    Grounding gives `ap50` and `miou` (`mean_set_iou` where several boxes are true), page OCR
    `edit_distance`, POPE `accuracy`, anything else `mean_reward`; prompts about one image are drawn
    together. Raises `ArtifactError` unless both are about the same prompts with the same truth,
    and measured by the same reward.
    """
    _check_rewards(better, worse)
    rows = _paired(better, worse)
    _check_truth(rows, better, worse)
    facts = _facts(rows, better)
    names = _names(better, worse)
    found = []
    for metric, where, value in _measures(facts, better.manifest["settings"].get("reward")):
        chosen = facts.filter(where)
        if chosen.height:
            images = chosen["image"].to_list()
            compared = paired_row(
                value(chosen["a"].to_numpy()), value(chosen["b"].to_numpy()), images, num_resamples
            )
            found.append({"metric": metric, "better": names[0], "worse": names[1], **compared})
    return found


def compare_versions(
    better: Version, worse: Version, *, out: Path | None, console: Console
) -> list[Row]:
    """As `compare_predictions`; with `out` the rows are kept there as a `comparison` artifact."""
    if out is None:
        return compare_predictions(better, worse)
    recipe = Recipe(
        "comparison", DEFAULT, "compare", STAGE_VERSION, {}, {"better": better, "worse": worse}
    )

    def work(writer: Writer) -> None:
        writer.write_part(0, compare_predictions(better, worse))

    rows: list[Row] = make_at(out, recipe, work, console).table().to_pylist()
    return rows


def open_predictions(path: Path) -> Version:
    """A `predictions` artifact, given by its place or by the folder that `perpo eval` wrote to."""
    inside = path / "predictions"
    return open_version(inside if inside.is_dir() else path, "predictions")


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
    """The rows as text, a line each; differences and their 95 % intervals in points of 100."""
    lines = [["metric", "points", "95 % interval", "p", "test", "n", "difference"]]
    for row in rows:
        lines.append(
            [
                row["metric"],
                _points(row["difference"]),
                f"[{_points(row['low'])}, {_points(row['high'])}]",
                p_text(row["p_value"]),
                row["test"],
                f"{row['n']:,}",
                f"{row['better']} - {row['worse']}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _points(difference: float) -> str:
    return "n/a" if difference != difference else f"{100 * difference:+.1f}"


def p_text(p_value: float) -> str:
    """A p-value as one writes it: three decimals, `< 0.001` below them, n/a for NaN."""
    if p_value != p_value:
        return "n/a"
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _check_rewards(a: Version, b: Version) -> None:
    rewards = [version.manifest["settings"].get("reward") for version in (a, b)]
    if rewards[0] != rewards[1]:
        raise ArtifactError(
            f"they were measured by different rewards: {rewards[0]} and {rewards[1]}",
            where=f"{a.path} and {b.path}",
            fix="evaluate both with the same reward",
        )


def _paired(a: Version, b: Version) -> pl.DataFrame:
    """prompt_id, the rewards `a` and `b`, and image_prompt_id, in the order of the first."""
    columns = PREDICTIONS.pick("prompt_id", "reward", "image_prompt_id")
    tables = [pl.DataFrame(version.table(columns=columns)) for version in (a, b)]
    for table, version in zip(tables, (a, b), strict=True):
        if table["prompt_id"].is_duplicated().any():
            raise ArtifactError(
                "a prompt is answered twice", where=str(version.path), fix="rerun `perpo eval`"
            )
    first, second = tables
    only = [
        one.join(other, on="prompt_id", how="anti").height
        for one, other in ((first, second), (second, first))
    ]
    if any(only):
        raise ArtifactError(
            f"they are not about the same prompts: {only[0]} of {first.height} are in the first "
            f"only, {only[1]} of {second.height} in the second only",
            where=f"{a.path} and {b.path}",
            fix="evaluate both on the same prompts; files of the same questions in another order "
            "need an `id` on each line",
        )
    if not first.height:
        raise ArtifactError("there are no predictions to compare", where=str(a.path))
    other = second.select("prompt_id", b="reward")
    if any("task" in version.manifest["settings"] for version in (a, b)):
        _check_images(first, second, a, b)
    return first.rename({"reward": "a"}).join(
        other, on="prompt_id", how="left", maintain_order="left"
    )


def _check_images(first: pl.DataFrame, second: pl.DataFrame, a: Version, b: Version) -> None:
    """Files say themselves which rows are about one image; both must say the same."""
    both = first.join(second, on="prompt_id", suffix="_b")
    differing = both.filter(pl.col("image_prompt_id") != pl.col("image_prompt_id_b"))
    if differing.height:
        raise ArtifactError(
            f"{differing.height} rows name another image in the one file than in the other, the "
            f"first is {differing['prompt_id'][0]}",
            where=f"{a.path} and {b.path}",
            fix="give `image` in both files alike, or in neither",
        )


def _check_truth(rows: pl.DataFrame, a: Version, b: Version) -> None:
    """Refuse prompts of one key whose image or truth differs; keys of a file hold the truth."""
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
            f"{len(differing)} prompts have another image or truth in the one than in the other, "
            f"the first is {differing[0]}",
            where=f"{prompts[0].path} and {prompts[1].path}",
            fix="evaluate both on the same prompts artifact",
        )


def _facts(rows: pl.DataFrame, version: Version) -> pl.DataFrame:
    """The rows with their task, image, and whether several boxes are true.

    Through the prompts in the lineage; predictions of a file have none and know their task and
    images themselves.
    """
    task = version.manifest["settings"].get("task")
    if task is not None:
        return rows.with_columns(task=pl.lit(task), image="image_prompt_id", is_set=pl.lit(False))
    columns = PROMPTS.pick("prompt_id", "task", "image_sha256", role="truth")
    prompts = pl.DataFrame(input_of(version, "prompts").table(columns=columns)).select(
        "prompt_id", "task", image="image_sha256", is_set=asks_for_set()
    )
    joined = rows.join(prompts, on="prompt_id", how="left", maintain_order="left")
    if joined["task"].null_count():
        raise ArtifactError(
            f"{joined['task'].null_count()} predictions belong to no prompt of their lineage",
            where=str(version.path),
            fix="rerun `perpo eval`",
        )
    return joined


def _measures(
    facts: pl.DataFrame, reward: Any
) -> list[tuple[str, pl.Series, Callable[[Floats], Floats]]]:
    """(metric, which rows it is of, its value from the reward)."""
    task, is_set = facts["task"], facts["is_set"]
    by_task = reward in (None, {AUTO: 1.0})
    boxes = (task == "grounding") & by_task
    pages = (task == "ocr") & by_task
    pope = task == POPE
    return [
        ("ap50", boxes & ~is_set, right),
        ("miou", boxes & ~is_set, np.asarray),
        ("mean_set_iou", boxes & is_set, np.asarray),
        ("edit_distance", pages, lambda rewards: 1.0 - rewards),
        ("accuracy", pope, np.asarray),
        ("mean_reward", ~(boxes | pages | pope), np.asarray),
    ]


def _names(a: Version, b: Version) -> tuple[str, str]:
    """The variants, with their fingerprints where they are called alike."""
    if a.variant != b.variant:
        return a.variant, b.variant
    return f"{a.variant} {a.fingerprint}", f"{b.variant} {b.fingerprint}"
