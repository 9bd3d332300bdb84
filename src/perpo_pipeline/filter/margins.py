"""The margin of every list, and the reason to drop it: pure functions of tables of numbers."""

import hashlib
from collections.abc import Mapping
from typing import Any

import polars as pl

from perpo_pipeline.config.filter import FilterConfig
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.rewards.margins import ROUNDING, TENTHS, count_margins, margin_edges

TOO_FEW_SAMPLES = "too_few_samples"
ALL_UNPARSED = "all_unparsed"
NO_PREFERENCE = "no_preference"
MARGIN_TOO_SMALL = "margin_too_small"
MARGIN_TOO_LARGE = "margin_too_large"
OVER_DATASET_SHARE = "over_dataset_share"
OVER_CAP = "over_cap"


def usable_rows(scores: pl.DataFrame, config: FilterConfig) -> pl.Expr:
    """Which completions of a list count: the first `list_size`, and those that could be read."""
    usable = pl.lit(True)
    if config.list_size is not None:
        usable &= pl.col("sample_id") < config.list_size
    if config.drop_unparsed:
        usable &= pl.col("parse_ok")
    return usable


def list_margins(scores: pl.DataFrame, config: FilterConfig) -> pl.DataFrame:
    """One row per list, in order: prompt_id, `completions` (usable ones), `first` (among the first
    `list_size`), `margin` and `parsed_margin` (largest - smallest reward, null for no completion).

    `scores` needs prompt_id, sample_id, reward, parse_ok and whole lists.
    """
    usable = usable_rows(scores, config)
    size = config.list_size
    first = pl.lit(True) if size is None else pl.col("sample_id") < size
    reward = pl.col("reward")

    def spread(rows: pl.Expr) -> pl.Expr:
        return reward.filter(rows).max() - reward.filter(rows).min()

    return scores.group_by("prompt_id", maintain_order=True).agg(
        completions=usable.sum().cast(pl.Int32),
        first=first.sum().cast(pl.Int32),
        unparsed=(first & ~pl.col("parse_ok")).sum().cast(pl.Int32),
        margin=spread(usable),
        parsed_margin=spread(usable & pl.col("parse_ok")).fill_null(0.0),
    )


def reasons_to_drop(lists: pl.DataFrame, config: FilterConfig) -> pl.Series:
    """Why each list is dropped, null where it stays.

    `lists` has the columns of `list_margins`, `dataset`, and `task` if settings differ by task,
    each of which they name. A list without any strict preference teaches nothing and is dropped,
    whatever `min_margin` is. If more lists remain than the cap or a dataset's share, those with the
    smallest hash of (seed, prompt_id) stay: a random choice that does not depend on the order of
    the rows. A cap by task is one for the lists of each task. Raises `ArtifactError` if a dataset
    has no list left while equal amounts are wanted.
    """
    margin = pl.col("margin")
    lower, upper = _of_list(config.min_margin), _of_list(config.max_margin, none=1.0)
    reasons = lists.select(
        pl.when(pl.col("first") < (config.list_size or 1))
        .then(pl.lit(TOO_FEW_SAMPLES))
        .when(pl.col("completions") == 0)
        .then(pl.lit(ALL_UNPARSED))
        .when(margin <= 0)
        .then(pl.lit(NO_PREFERENCE))
        .when(margin < lower - ROUNDING)
        .then(pl.lit(MARGIN_TOO_SMALL))
        .when(margin > upper + ROUNDING)
        .then(pl.lit(MARGIN_TOO_LARGE))
        .alias("reason")
    )["reason"]
    every = lists.with_row_index()
    caps = config.max_lists
    groups = (
        [(every.filter(pl.col("task").cast(pl.String) == task), caps[task]) for task in caps]
        if isinstance(caps, Mapping)
        else [(every, caps)]
    )
    for group, cap in groups:
        chosen = group.filter(reasons.gather(group["index"]).is_null())
        for surplus, reason in _surplus(chosen, group["dataset"].unique(), cap, config):
            if surplus.len():
                reasons = reasons.scatter(surplus, reason)
    return reasons


def _of_list(value: Any, none: float | None = None) -> pl.Expr:
    """A setting's value for each list; `none` in place of None."""
    if not isinstance(value, Mapping):
        return pl.lit(none if value is None else value)
    by_task = {task: none if one is None else one for task, one in value.items()}
    return pl.col("task").cast(pl.String).replace_strict(by_task, return_dtype=pl.Float64)


def _surplus(
    chosen: pl.DataFrame, datasets: pl.Series, cap: int | None, config: FilterConfig
) -> list[tuple[pl.Series, str]]:
    """Row numbers of the lists beyond each dataset's share, and beyond the cap."""
    if not config.equal_datasets and (cap or chosen.height) >= chosen.height:
        return []
    drawn = chosen.with_columns(
        draw=pl.Series([_draw(config.seed, key) for key in chosen["prompt_id"]], dtype=pl.String)
    ).sort("draw")
    if not config.equal_datasets:
        return [(drawn["index"][cap:], OVER_CAP)]
    counts = {name: int((chosen["dataset"] == name).sum()) for name in datasets.sort()}
    share = min(counts.values(), default=0)
    if cap is not None and counts:
        share = min(share, cap // len(counts))
    if not share:
        raise ArtifactError(
            f"equal amounts per dataset are impossible with these lists: {counts} (max_lists "
            f"{cap})",
            fix="lower filter.min_margin, raise filter.max_lists to at least one per dataset, "
            "or set filter.equal_datasets to false",
        )
    rank = pl.int_range(pl.len()).over("dataset")
    return [(drawn.filter(rank >= share)["index"], OVER_DATASET_SHARE)]


def _draw(seed: int, prompt_id: str) -> str:
    return hashlib.sha256(f"{seed} {prompt_id}".encode()).hexdigest()


def margin_counts(lists: pl.DataFrame, threshold: float | None = None) -> dict[str, Any]:
    """The margins of `lists` in bins that show `threshold`, and what each edge would keep.

    As in `count_margins`, before any cap; in tenths without a threshold. `lists` has `margin` and
    `reason`; a list that every threshold drops (too few samples, all unparsed) is in neither count;
    one with too large a margin is only in the histogram.
    """
    reason = pl.col("reason")
    usable = lists.filter(reason.is_null() | ~reason.is_in([TOO_FEW_SAMPLES, ALL_UNPARSED]))
    margins = usable["margin"].to_numpy()
    fits = usable.select((reason != MARGIN_TOO_LARGE).fill_null(True)).to_series().to_numpy()
    edges = TENTHS if threshold is None else margin_edges(threshold, margins)
    return count_margins(margins, fits, edges)
