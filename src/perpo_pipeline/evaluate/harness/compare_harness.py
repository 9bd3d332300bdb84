"""Two models on the same questions of a harness, paired by question."""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.evaluate.compare import paired_row
from perpo_pipeline.run import DEFAULT, Console, make_at
from perpo_pipeline.store.artifacts import CURRENT, MANIFEST, Version, open_version
from perpo_pipeline.store.writing import Recipe, Writer

STAGE_VERSION = 1
KEY = ["task", "metric", "doc_id"]

Row = dict[str, Any]
Floats = npt.NDArray[np.float64]


def find_harness(path: Path) -> Version | None:
    """The `harness` artifact at `path` or in the --out directory `path`; None for anything else."""
    inside = path / "harness"
    place = inside if inside.is_dir() else path
    if not (place / CURRENT).is_file() and not (place / MANIFEST).is_file():
        return None
    version = open_version(place)
    return version if version.artifact == "harness" else None


def compare_harness(
    better: Version, worse: Version, *, num_resamples: int = 10_000
) -> tuple[list[Row], list[str]]:
    """COMPARISON rows of each metric that both have, and the metrics that only one has.

    Raises ArtifactError if the questions of a metric differ, or if no metric is in both.
    """
    first, second = (pl.DataFrame(version.table()) for version in (better, worse))
    shared = metrics_of(first) & metrics_of(second)
    single = metrics_of(first) ^ metrics_of(second)
    if not shared:
        raise ArtifactError(
            "the logs have no metric with scores of single questions in common",
            where=f"{better.path} and {worse.path}",
            fix="compare logs of the same tasks, written with the scores of their questions",
        )
    names = _names(better, worse)
    rows = []
    for task, metric in sorted(shared):
        pairs = pair_questions(first, second, task, metric, (better, worse))
        named = {"metric": f"{task}/{metric}", "better": names[0], "worse": names[1]}
        rows.append(named | compare_pairs(pairs, num_resamples))
    return rows, [f"{task}/{metric}" for task, metric in sorted(single)]


def compare_harness_versions(
    better: Version, worse: Version, *, out: Path | None, console: Console
) -> list[Row]:
    """As `compare_harness`; names what is left out; with `out` the rows are also written there."""
    rows, single = compare_harness(better, worse)
    if single:
        console.say(f"compare: only one of the two has {', '.join(single)}")
    if out is None:
        return rows
    inputs = {"better": better, "worse": worse}
    recipe = Recipe("comparison", DEFAULT, "compare", STAGE_VERSION, {"metrics": "harness"}, inputs)

    def work(writer: Writer) -> None:
        writer.write_part(0, rows)

    written: list[Row] = make_at(out, recipe, work, console).table().to_pylist()
    return written


def compare_pairs(pairs: pl.DataFrame, num_resamples: int) -> Row:
    """The numbers of a COMPARISON row for the questions of `pair_questions`."""
    images = pairs["image"].to_list()
    known = images if None not in images else pairs["doc_id"].to_list()
    ours, theirs = (pairs[name].to_numpy() for name in ("score", "score_b"))
    return _paired_scores(ours, theirs, known, num_resamples)


def _paired_scores(
    ours: Floats, theirs: Floats, images: Sequence[Hashable], num_resamples: int
) -> Row:
    """As `paired_row`; scores of 0 and 100 are right or wrong, as 0 and 1 are."""
    in_per_cent = set(ours) | set(theirs) <= {0.0, 100.0}
    scale = 100.0 if in_per_cent else 1.0
    row = paired_row(ours / scale, theirs / scale, images, num_resamples)
    return row | {name: scale * row[name] for name in ("difference", "low", "high")}


def metrics_of(table: pl.DataFrame) -> set[tuple[str, str]]:
    """The (task, metric) of HARNESS rows."""
    return set(table.select("task", "metric").unique().iter_rows())


def pair_questions(
    first: pl.DataFrame,
    second: pl.DataFrame,
    task: str,
    metric: str,
    versions: tuple[Version, Version],
) -> pl.DataFrame:
    """The questions of one metric of two tables of HARNESS rows: `score` and `score_b`.

    Raises ArtifactError if the two hold different questions.
    """
    ours, theirs = (
        table.filter((pl.col("task") == task) & (pl.col("metric") == metric))
        for table in (first, second)
    )
    both = ours.join(theirs, on=KEY, suffix="_b", maintain_order="left")
    where = f"{versions[0].path} and {versions[1].path}"
    if both.height != ours.height or both.height != theirs.height:
        raise ArtifactError(
            f"{task}: different questions: {ours.height - both.height} of {ours.height} are only "
            f"in the first, {theirs.height - both.height} of {theirs.height} only in the second",
            where=where,
            fix="run both models on the same questions, with the same --limit",
        )
    other = both.filter(pl.col("question_sha256") != pl.col("question_sha256_b"))
    if other.height:
        raise ArtifactError(
            f"{task}: {other.height} of {both.height} questions have another text or another true "
            f"answer in the two, first {other['doc_id'][0]}",
            where=where,
            fix="run both models with the same version of the task and the same prompts",
        )
    return both


def _names(better: Version, worse: Version) -> tuple[str, str]:
    """The variants' names, followed by their fingerprints if the names are equal."""
    if better.variant != worse.variant:
        return better.variant, worse.variant
    return f"{better.variant} {better.fingerprint}", f"{worse.variant} {worse.fingerprint}"
