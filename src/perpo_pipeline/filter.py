"""`perpo filter`: the lists worth learning from -> the preferences artifact, `dropped` beside it.

The core, `select_lists`, is pure. Each dropped list is kept with its reason.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import polars as pl
import pyarrow as pa

from perpo_pipeline.artifacts import Recipe, Version, Writer, input_of
from perpo_pipeline.config import FilterConfig
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.stage import Run, make

STAGE_VERSION = 1
NO_PREFERENCE = "no_preference"
MARGIN_TOO_SMALL = "margin_too_small"
OVER_CAP = "over_cap"
ROUNDING = 1e-9
LISTS_PER_PART = 1024

Row = dict[str, Any]


def filter_lists(run: Run, split: str) -> Version:
    """Write the preferences of one split."""
    scores = run.latest("scores", split)
    samples = run.latest("samples") if "samples" in run.inputs else input_of(scores, "samples")
    prompts = input_of(scores, "prompts")
    settings = run.config.filter.result_settings()
    inputs = {"scores": scores, "samples": samples, "prompts": prompts}
    recipe = Recipe("preferences", split, "filter", STAGE_VERSION, settings, inputs)

    def work(writer: Writer) -> Mapping[str, Any]:
        lists = gather_lists(samples.table(), scores.table(), prompts.table(columns=TASK_COLUMNS))
        kept, dropped = select_lists(lists, run.config.filter)
        if not kept:
            raise ArtifactError(
                f"no list is left of {len(lists)}: the largest margin is "
                f"{max((m['margin'] for m in lists), default=0.0):.3f}",
                where=str(scores.path), fix="lower filter.min_margin",
            )  # fmt: skip
        writer.write_part(0, dropped, table="dropped")
        for index, start in enumerate(range(0, len(kept), LISTS_PER_PART)):
            if not writer.has_part(index):
                writer.write_part(index, kept[start : start + LISTS_PER_PART])
        counts = summarise(kept, dropped, run.config.filter.min_margin)
        run.say(_sentence(counts))
        return counts

    return make(run, recipe, work, out=run.out)


TASK_COLUMNS = ["prompt_id", "task"]


def gather_lists(samples: pa.Table, scores: pa.Table, prompts: pa.Table) -> list[Row]:
    """Join samples and scores into one PREFERENCES row a prompt, in the order of the samples.

    Identical completions (by token ids) are merged with their multiplicity; completions come in
    descending order of reward, ties in the order of sampling.
    """
    keys = ["prompt_id", "sample_id"]
    if samples.select(keys) != scores.select(keys):
        raise ArtifactError(
            "the samples and scores do not have the same rows", fix="rerun `perpo score`"
        )
    columns = ["prompt_id", "completion", "completion_token_ids", "finish_reason"]
    rows = pl.DataFrame(samples.select(columns)).hstack(
        pl.DataFrame(scores.select(["reward", "parse_ok"]))
    )
    tasks = dict(zip(*prompts.select(TASK_COLUMNS).to_pydict().values(), strict=True))
    return [
        _merge_list(str(group["prompt_id"][0]), tasks, group)
        for group in rows.partition_by("prompt_id", maintain_order=True)
    ]


def _merge_list(prompt_id: str, tasks: Mapping[str, str], group: pl.DataFrame) -> Row:
    merged: dict[tuple[int, ...], Row] = {}
    for row in group.iter_rows(named=True):
        key = (*row["completion_token_ids"], row["finish_reason"])
        merged.setdefault(key, {**row, "count": 0})["count"] += 1
    ranked = sorted(merged.values(), key=lambda row: -row["reward"])
    rewards = [row["reward"] for row in ranked]
    return {
        "prompt_id": prompt_id,
        "task": tasks[prompt_id],
        "completions": [row["completion"] for row in ranked],
        "completion_token_ids": [row["completion_token_ids"] for row in ranked],
        "finish_reasons": [row["finish_reason"] for row in ranked],
        "rewards": rewards,
        "parse_ok": [row["parse_ok"] for row in ranked],
        "counts": [row["count"] for row in ranked],
        "margin": rewards[0] - rewards[-1],
    }


def select_lists(lists: list[Row], config: FilterConfig) -> tuple[list[Row], list[Row]]:
    """Split lists into kept ones and dropped ones (prompt_id, reason, margin).

    A list without any strict preference teaches nothing and goes, whatever the margin asked for.
    Over the cap, the lists with the smallest hash of (seed, prompt_id) stay: a random choice that
    does not depend on the order of the rows. The order of those kept is the one given.
    """
    reasons = {row["prompt_id"]: _reason_to_drop(row["margin"], config) for row in lists}
    wide = [key for key, reason in reasons.items() if reason is None]
    if config.max_lists is not None:
        for key in sorted(wide, key=lambda k: _draw(config.seed, k))[config.max_lists :]:
            reasons[key] = OVER_CAP
    kept = [row for row in lists if reasons[row["prompt_id"]] is None]
    dropped = [
        {"prompt_id": row["prompt_id"], "reason": reason, "margin": row["margin"]}
        for row in lists
        if (reason := reasons[row["prompt_id"]]) is not None
    ]
    return kept, dropped


def _reason_to_drop(margin: float, config: FilterConfig) -> str | None:
    if margin <= 0:
        return NO_PREFERENCE
    return MARGIN_TOO_SMALL if margin < config.min_margin - ROUNDING else None


def _draw(seed: int, prompt_id: str) -> str:
    return hashlib.sha256(f"{seed} {prompt_id}".encode()).hexdigest()


def summarise(kept: list[Row], dropped: list[Row], min_margin: float) -> dict[str, Any]:
    """Counts for the manifest, with the share of the margin that unparsed answers make.

    `margin_from_unparsed` is the part of the mean margin that is gone when unparsed answers are
    left out; `kept_by_unparsed_only` counts the lists that would then not have passed.
    """
    parsed_margins = [_parsed_margin(row) for row in kept]
    reasons = [row["reason"] for row in dropped]
    mean_margin = sum(row["margin"] for row in kept) / len(kept)
    return {
        "lists": len(kept) + len(dropped),
        "kept": len(kept),
        "dropped": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
        "mean_margin": mean_margin,
        "margin_from_unparsed": mean_margin - sum(parsed_margins) / len(kept),
        "kept_by_unparsed_only": sum(m < min_margin - ROUNDING for m in parsed_margins),
        "distinct_completions_mean": sum(len(row["counts"]) for row in kept) / len(kept),
    }


def _parsed_margin(row: Row) -> float:
    rewards = [r for r, ok in zip(row["rewards"], row["parse_ok"], strict=True) if ok]
    return max(rewards) - min(rewards) if rewards else 0.0


def _sentence(counts: Mapping[str, Any]) -> str:
    gone = ", ".join(f"{n} {reason}" for reason, n in counts["dropped"].items()) or "none"
    return (
        f"filter: {counts['kept']} of {counts['lists']} lists kept (dropped: {gone}); "
        f"mean margin {counts['mean_margin']:.3f}, of which {counts['margin_from_unparsed']:.3f} "
        f"comes from unparsed answers; {counts['kept_by_unparsed_only']} lists pass only by them"
    )
