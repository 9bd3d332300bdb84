"""`perpo filter`: the lists worth learning from -> the preferences artifact, with `dropped` in it.

Two passes over the parts, so that memory holds a few numbers per list and no texts: the first
computes every list's margin and decides (margins.py), the second writes the lists that stay
(lists.py). The table `dropped` keeps everything else, with the reason.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from perpo_pipeline.config.by_task import fit_to_tasks, of_task
from perpo_pipeline.config.filter import FilterConfig
from perpo_pipeline.config.fingerprints import STAGE_VERSIONS, counted_settings
from perpo_pipeline.config.steps import warn_of_few_lists
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.filter.earlier import (
    check_same_prompts,
    note_other_chats,
    open_earlier,
    write_earlier,
)
from perpo_pipeline.filter.lists import SAMPLE_COLUMNS, build_lists, left_out
from perpo_pipeline.filter.margins import (
    ALL_UNPARSED,
    MARGIN_TOO_LARGE,
    MARGIN_TOO_SMALL,
    NO_PREFERENCE,
    TOO_FEW_SAMPLES,
    list_margins,
    margin_counts,
    reasons_to_drop,
)
from perpo_pipeline.rewards.margins import ROUNDING, margin_table
from perpo_pipeline.run import Run, make
from perpo_pipeline.store.artifacts import Version, input_of
from perpo_pipeline.store.list_prompts import num_new_lists
from perpo_pipeline.store.made_from import was_made_again
from perpo_pipeline.store.places import prompts_named
from perpo_pipeline.store.prompt_lookup import check_unique
from perpo_pipeline.store.schemas import DROPPED_LISTS, PROMPTS, SAMPLES, SCORES
from perpo_pipeline.store.writing import Recipe, Writer

STAGE_VERSION = STAGE_VERSIONS["preferences"]
LISTS_PER_PART = 1024
ADVICE = {
    TOO_FEW_SAMPLES: "lower filter.list_size to what was sampled, or sample more",
    ALL_UNPARSED: "check model.box_format and box_frame: no answer could be read",
    NO_PREFERENCE: "look at the scores: a list whose rewards are all equal teaches nothing",
    MARGIN_TOO_SMALL: "lower filter.min_margin",
    MARGIN_TOO_LARGE: "raise filter.max_margin",
}
KEYS = list(SAMPLES.role("key"))
REWARD_COLUMNS = list(SCORES.role("measured"))
TASK_COLUMNS = PROMPTS.pick("prompt_id", "task", "dataset")


def filter_lists(run: Run, split: str) -> Version:
    """Write the preferences of one split."""
    scores = run.latest("scores", split)
    samples = run.latest("samples") if "samples" in run.inputs else input_of(scores, "samples")
    prompts = input_of(scores, "prompts")
    config = fit_to_tasks(run.config.filter, "filter", prompts)
    earlier = open_earlier(config, run.out or run.place("preferences", split))
    facts = {"earlier_lists": earlier["earlier"].fingerprint} if earlier else {}
    recipe = Recipe(
        "preferences",
        split,
        "filter",
        STAGE_VERSION,
        counted_settings("preferences", config, facts),
        {"scores": scores, "samples": samples, "prompts": prompts, **earlier},
    )

    def work(writer: Writer) -> Mapping[str, Any]:
        check_same_prompts(prompts, earlier)
        note_other_chats(run, samples, earlier)
        sampled = Sampled(samples, scores)
        lists = _all_margins(run, sampled, split, config).join(
            _tasks(prompts), on="prompt_id", how="left", maintain_order="left"
        )
        lists = lists.with_columns(reason=reasons_to_drop(lists, config))
        _print_reward(run, scores)
        by_task = _by_task(lists)
        for task, own in by_task.items():
            least = of_task(config.min_margin, task)
            if len(by_task) > 1:
                run.say(f"filter: {task}, {own.height:,} lists, min_margin {least:g}")
            run.say(margin_table(margin_counts(own, least)))
        _check_some_are_left(lists, scores)
        _write_lists(run, writer, sampled, lists, config)
        new = lists.filter(pl.col("reason").is_null())["prompt_id"]
        of_earlier = write_earlier(
            run, writer, earlier, new, config, first_part=math.ceil(len(new) / LISTS_PER_PART)
        )
        counts = count_lists(by_task, config) | _count_kept(writer) | of_earlier
        for task, of_one in counts.get("tasks", {}).items():
            run.say(_sentence(of_one, f" of {task}"))
        run.say(_sentence(counts))
        return counts

    with prompts_named(prompts):
        version = make(run, recipe, work, out=run.out)
    _warn_of_few_steps(run, version)
    return version


def _warn_of_few_steps(run: Run, version: Version) -> None:
    made, trainings = version.manifest, run.config.train.variants()
    tasks = version.table(columns=["task"])["task"].to_pylist()
    # Counts of a single task do not name it; the first list, which is a new one, has its name.
    of_tasks = made["counts"].get("tasks") or {tasks[0]: made["counts"]}
    earlier = Counter(tasks[num_new_lists(version) :])
    for line in warn_of_few_lists(trainings, of_tasks, made["settings"], earlier):
        run.say(f"filter: {line}")


@dataclass(frozen=True)
class Sampled:
    """Samples and their scores, part by part."""

    samples: Version
    scores: Version

    def __post_init__(self) -> None:
        scored = self.scores.manifest["inputs"]["samples"]
        is_earlier = was_made_again(scored, self.samples)
        if is_earlier or scored["fingerprint"] != self.samples.fingerprint:
            which = (
                f"other samples ({scored['fingerprint']}) than these ({self.samples.fingerprint})"
            )
            if is_earlier:
                which = "the samples as they were before they were made again"
            raise ArtifactError(
                f"the scores belong to {which}: their rewards are those of other completions",
                where=f"{self.samples.path} and {self.scores.path}",
                fix=f"run: {self.scores.remake()}",
            )
        if len(self.samples.parts()) != len(self.scores.parts()):
            raise self._mismatch()

    def __len__(self) -> int:
        return len(self.scores.parts())

    def rewards(self, index: int) -> pl.DataFrame:
        """Keys, reward and parse_ok of a part; raises `ArtifactError` unless both agree."""
        rows = pl.DataFrame(self.scores.part(index, [*KEYS, *REWARD_COLUMNS]))
        if not rows.select(KEYS).equals(pl.DataFrame(self.samples.part(index, KEYS))):
            raise self._mismatch()
        check_unique(rows, KEYS, str(self.scores.parts()[index]), self.samples)
        return rows

    def rows(self, index: int, prompt_ids: pl.Series) -> pl.DataFrame:
        """SAMPLE_COLUMNS and rewards of some lists of a part."""
        rows = pl.DataFrame(self.samples.part(index, SAMPLE_COLUMNS)).hstack(
            pl.DataFrame(self.scores.part(index, REWARD_COLUMNS))
        )
        return rows.filter(pl.col("prompt_id").is_in(prompt_ids.implode()))

    def _mismatch(self) -> ArtifactError:
        return ArtifactError(
            "the samples and scores do not have the same rows",
            where=f"{self.samples.path} and {self.scores.path}",
            fix=f"remove the scores and run: {self.scores.remake()}",
        )


def _print_reward(run: Run, scores: Version) -> None:
    """Print which rewards rank the lists, and a doubt if the configuration names others."""
    measured, wanted = scores.manifest["settings"].get("reward", {}), run.config.score.weights()
    doubt = f" (the configuration says {_named(wanted)})" * (measured != wanted)
    run.say(f"filter: ranked by {_named(measured)}{doubt}")


def _named(weights: Mapping[str, float]) -> str:
    if len(weights) == 1:
        return next(iter(weights))
    return ", ".join(f"{name}={weight:g}" for name, weight in weights.items())


def _all_margins(run: Run, sampled: Sampled, split: str, config: FilterConfig) -> pl.DataFrame:
    parts = run.progress(range(len(sampled)), f"filter {split}: margins", len(sampled), "parts")
    if not len(sampled):
        raise ArtifactError(
            "the artifact holds no scores",
            where=str(sampled.scores.path),
            fix="remove both and run: "
            + f"{sampled.samples.remake()}; then: {sampled.scores.remake()}",
        )
    lists = pl.concat(
        [
            list_margins(sampled.rewards(index), config).with_columns(part=pl.lit(index))
            for index in parts
        ]
    )
    check_unique(lists, ["prompt_id"], str(sampled.scores.path), sampled.samples)
    return lists


def _tasks(prompts: Version) -> pl.DataFrame:
    parts = [pl.DataFrame(part) for part in prompts.batches(TASK_COLUMNS)]
    return pl.concat(parts).with_columns(pl.col("task", "dataset").cast(pl.Categorical))


def _by_task(lists: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """The lists of each task, in the order in which tasks appear."""
    tasks = lists["task"].cast(pl.String)
    return {task: lists.filter(tasks == task) for task in tasks.unique(maintain_order=True)}


def _check_some_are_left(lists: pl.DataFrame, scores: Version) -> None:
    if lists["reason"].null_count():
        return
    largest = max(lists["margin"].drop_nulls(), default=0.0)
    reasons = _by_reason(lists)
    advice = dict.fromkeys(ADVICE[reason] for reason in sorted(reasons, key=lambda r: -reasons[r]))
    raise ArtifactError(
        f"none of {lists.height} lists is left: the largest margin is {largest:.3f}; dropped: "
        f"{_listed(reasons)}",
        where=str(scores.path),
        fix="; ".join(advice),
    )


def _write_lists(
    run: Run, writer: Writer, sampled: Sampled, lists: pl.DataFrame, config: FilterConfig
) -> None:
    """Write the lists that stay, LISTS_PER_PART per part; the first part also has those dropped."""
    kept = lists.filter(pl.col("reason").is_null())
    starts = range(0, kept.height, LISTS_PER_PART)
    for index, start in enumerate(run.progress(starts, "filter: lists", len(starts), "parts")):
        if writer.has_part(index):
            continue
        chunk = kept.slice(start, LISTS_PER_PART)
        rows = pl.concat(
            [
                sampled.rows(part, chunk.filter(pl.col("part") == part)["prompt_id"])
                for part in chunk["part"].unique(maintain_order=True)
            ]
        )
        tasks = dict(zip(chunk["prompt_id"], chunk["task"], strict=True))
        built = build_lists(rows, tasks, config)
        aside = pl.concat(
            [_dropped_lists(lists) if index == 0 else _no_drops(), left_out(rows, built, config)]
        )
        if index == 0 or aside.height:
            writer.write_part(index, aside.to_arrow(), table="dropped")
        writer.write_part(index, built)


def _dropped_lists(lists: pl.DataFrame) -> pl.DataFrame:
    return lists.filter(pl.col("reason").is_not_null()).select(
        "prompt_id", pl.lit(None, pl.Int32).alias("sample_id"), "reason", "margin"
    )


def _no_drops() -> pl.DataFrame:
    return pl.DataFrame(DROPPED_LISTS.columns.empty_table())


def count_lists(by_task: Mapping[str, pl.DataFrame], config: FilterConfig) -> dict[str, Any]:
    """`summarise` of the lists; of several tasks `tasks` has each task's, with its own margin.

    The counts of all tasks together have no histogram: their margins have no common scale.
    """
    found = {
        task: summarise(lists, of_task(config.min_margin, task)) for task, lists in by_task.items()
    }
    if len(found) == 1:
        return next(iter(found.values()))
    dropped: Counter[str] = Counter()
    for one in found.values():
        dropped.update(one["dropped"])
    kept: int = sum(one["kept"] for one in found.values())

    def mean(name: str) -> float:
        total: float = sum(one[name] * one["kept"] for one in found.values())
        return total / kept

    return {
        "lists": sum(one["lists"] for one in found.values()),
        "kept": kept,
        "dropped": dict(sorted(dropped.items())),
        "mean_margin": mean("mean_margin"),
        "margin_from_unparsed": mean("margin_from_unparsed"),
        "kept_by_unparsed_only": sum(one["kept_by_unparsed_only"] for one in found.values()),
        "tasks": found,
    }


def summarise(lists: pl.DataFrame, min_margin: float) -> dict[str, Any]:
    """Counts for the manifest, with the part of the margin that unparsed answers make.

    `lists` has the columns of `list_margins` and `reason`, null where a list stays.
    `margin_from_unparsed` is the part of the mean margin that disappears without unparsed
    answers; `kept_by_unparsed_only` counts the lists that would not have passed without them.
    """
    kept = lists.filter(pl.col("reason").is_null())
    margins, parsed = kept["margin"].to_numpy(), kept["parsed_margin"].to_numpy()
    return {
        "lists": lists.height,
        "kept": kept.height,
        "dropped": _by_reason(lists),
        "mean_margin": _mean(margins),
        "margin_from_unparsed": _mean(margins) - _mean(parsed),
        "kept_by_unparsed_only": int(((parsed < min_margin - ROUNDING) | (parsed <= 0)).sum()),
        **margin_counts(lists, min_margin),
    }


def _mean(values: npt.NDArray[np.float64]) -> float:
    """The mean; 0 if no list of a task is kept."""
    return float(values.mean()) if len(values) else 0.0


def _listed(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in reasons.items())


def _by_reason(lists: pl.DataFrame) -> dict[str, int]:
    return dict(sorted(Counter(lists["reason"].drop_nulls().to_list()).items()))


def _count_kept(writer: Writer) -> dict[str, Any]:
    """Counts of the lists that stay: distinct completions, tied pairs, completions left out."""
    rewards = writer.read_rows(["rewards", "counts"])
    lists = pl.concat([pl.DataFrame(part) for part in rewards]).with_row_index()
    flat = lists.explode("rewards", "counts")
    ties = flat.group_by("index", "rewards").agg(pl.col("counts").cast(pl.Int64).sum())
    sizes = flat.group_by("index").agg(pl.col("counts").cast(pl.Int64).sum())

    def pairs(counts: pl.Series) -> int:
        return int((counts * (counts - 1) // 2).sum())

    aside = [pl.DataFrame(part) for part in writer.read_rows(["sample_id", "reason"], "dropped")]
    completions = pl.concat(aside).filter(pl.col("sample_id").is_not_null())["reason"]
    return {
        "distinct_completions_mean": flat.height / lists.height,
        "tied_pairs_share": pairs(ties["counts"]) / pairs(sizes["counts"]),
        "completions_left_out": dict(sorted(Counter(completions.to_list()).items())),
    }


def _sentence(counts: Mapping[str, Any], of: str = "") -> str:
    dropped = _listed(counts["dropped"]) or "none"
    return (
        f"filter: {counts['kept']} of {counts['lists']} lists{of} kept (dropped: {dropped}); "
        f"mean margin {counts['mean_margin']:.3f}, of which {counts['margin_from_unparsed']:.3f} "
        f"comes from unparsed answers; {counts['kept_by_unparsed_only']} lists pass only through "
        "them"
    )
