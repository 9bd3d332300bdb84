"""PREFERENCES rows: the completions of one prompt, merged and ranked, or one pair of them.

M3PO (Gao et al.) picks the pair of highest learning value from the pool, by an external quality
and the model's own confidence. Its abstract gives no formula; this one is ours:

- quality: the reward; confidence: the mean log-probability per token under the sampling model
  (`sampler_logprob` / number of tokens).
- chosen: the completion with the best reward.
- rejected: the one that maximises (reward gap to the chosen) x (confidence rank). The rank is
  among the list's K distinct completions, 1/K for the least confident up to 1 for the most
  confident; equal confidences get the mean of their ranks. A confident bad answer is a hard
  negative.
- Ties are broken by the larger gap, then by a hash of the token ids and the finish reason, never
  by the order of the list.
"""

import math
from collections.abc import Mapping
from typing import Any

import polars as pl

from perpo_pipeline.config.filter import FilterConfig
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.filter.margins import usable_rows
from perpo_pipeline.seeds import tie_break
from perpo_pipeline.store.schemas import SAMPLES

SAMPLE_COLUMNS = SAMPLES.pick(
    "prompt_id",
    "sample_id",
    "completion",
    "completion_token_ids",
    "finish_reason",
    "sampler_logprob",
)
UNPARSED = "unparsed"
BEYOND_LIST_SIZE = "beyond_list_size"
PAIR_NOT_CHOSEN = "not_in_the_pair"
COPY_OF_PAIR = "copy_in_the_pair"

Row = dict[str, Any]


def build_lists(rows: pl.DataFrame, tasks: Mapping[str, str], config: FilterConfig) -> list[Row]:
    """One PREFERENCES row per prompt, in the order of the rows.

    `rows` holds SAMPLE_COLUMNS, reward and parse_ok of whole lists. Identical completions (by token
    ids) are merged with their multiplicity; completions are in descending order of reward, ties in
    the order of sampling. Raises `ArtifactError` where M3PO lacks the sampler's log-probabilities.
    """
    usable = rows.filter(usable_rows(rows, config))
    groups = usable.partition_by("prompt_id", maintain_order=True)
    lists = []
    for group in groups:
        ranked = _ranked(group)
        if config.strategy == "m3po":
            ranked = _pair(ranked)
        prompt_id = str(group["prompt_id"][0])
        lists.append(_preferences_row(prompt_id, tasks[prompt_id], ranked))
    return lists


def left_out(rows: pl.DataFrame, lists: list[Row], config: FilterConfig) -> pl.DataFrame:
    """DROPPED rows of the completions that are left out of their lists, each with its reason."""
    reason = pl.lit(None, pl.String)
    if config.strategy == "m3po":
        reason = pl.lit(pl.Series(_reasons_of_pairs(rows, lists), dtype=pl.String))
    if config.drop_unparsed:
        reason = pl.when(~pl.col("parse_ok")).then(pl.lit(UNPARSED)).otherwise(reason)
    if config.list_size is not None:
        beyond = pl.col("sample_id") >= config.list_size
        reason = pl.when(beyond).then(pl.lit(BEYOND_LIST_SIZE)).otherwise(reason)
    named = rows.select(
        "prompt_id", "sample_id", reason.alias("reason"), pl.lit(None, pl.Float64).alias("margin")
    )
    return named.filter(pl.col("reason").is_not_null())


def _reasons_of_pairs(rows: pl.DataFrame, lists: list[Row]) -> list[str | None]:
    """Why each row is not in its pair: another answer was chosen, or a copy of this answer."""
    waiting = {(row["prompt_id"], *key) for row in lists for key in _keys_of(row)}
    pairs = set(waiting)
    reasons: list[str | None] = []
    for row in rows.iter_rows(named=True):
        key = (row["prompt_id"], *_key(row))
        if key in waiting:
            waiting.remove(key)
            reasons.append(None)
        else:
            reasons.append(COPY_OF_PAIR if key in pairs else PAIR_NOT_CHOSEN)
    return reasons


def _keys_of(row: Row) -> list[tuple[Any, ...]]:
    pairs = zip(row["completion_token_ids"], row["finish_reasons"], strict=True)
    return [(*ids, reason) for ids, reason in pairs]


def _key(row: Row) -> tuple[Any, ...]:
    return (*row["completion_token_ids"], row["finish_reason"])


def _ranked(group: pl.DataFrame) -> list[Row]:
    merged: dict[tuple[Any, ...], Row] = {}
    for row in group.iter_rows(named=True):
        merged.setdefault(_key(row), {**row, "count": 0})["count"] += 1
    return sorted(merged.values(), key=lambda row: -row["reward"])


def _pair(ranked: list[Row]) -> list[Row]:
    """The chosen and the rejected completion of M3PO, each counted once."""
    confidences = [_confidence(row) for row in ranked]
    ranks = pl.Series(confidences).rank("average") / len(ranked)
    best = ranked[0]["reward"]
    chosen = min((row for row in ranked if row["reward"] == best), key=_token_hash)
    worse = [(row, rank) for row, rank in zip(ranked, ranks, strict=True) if row["reward"] < best]
    rejected, _ = min(
        worse,
        key=lambda item: (-_value(best, *item), item[0]["reward"], _token_hash(item[0])),
    )
    return [{**chosen, "count": 1}, {**rejected, "count": 1}]


def _value(best: float, row: Row, rank: float) -> float:
    return round(float(best - row["reward"]) * float(rank), 12)


def _confidence(row: Row) -> float:
    logprob = row["sampler_logprob"]
    if logprob is None or math.isnan(logprob) or not row["completion_token_ids"]:
        raise ArtifactError(
            "m3po needs the sampler's log-probability of every completion; "
            f"sample {row['sample_id']} of prompt {row['prompt_id']} has none",
            fix="sample with the transformers or vllm backend, or use filter.strategy: lists",
        )
    return float(logprob) / len(row["completion_token_ids"])


def _token_hash(row: Row) -> str:
    return tie_break(_key(row))


def _preferences_row(prompt_id: str, task: str, ranked: list[Row]) -> Row:
    rewards = [row["reward"] for row in ranked]
    return {
        "prompt_id": prompt_id,
        "task": task,
        "completions": [row["completion"] for row in ranked],
        "completion_token_ids": [row["completion_token_ids"] for row in ranked],
        "finish_reasons": [row["finish_reason"] for row in ranked],
        "rewards": rewards,
        "parse_ok": [row["parse_ok"] for row in ranked],
        "counts": [row["count"] for row in ranked],
        "margin": rewards[0] - rewards[-1],
    }
