"""Metrics of predictions, with 95 % intervals over images (prompts that share one go together)."""

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from perpo_pipeline.evaluate.statistics import mean_interval

Row = dict[str, Any]


def summarise(predictions: pa.Table, prompts: pa.Table) -> list[Row]:
    """METRICS rows, one a metric, split and kind of task.

    `predictions` needs prompt_id, reward, parse_ok; `prompts` prompt_id, split, task, image_sha256.
    Grounding gives `ap50` and `ap75` (share of prompts with IoU >= 0.5, 0.75; an answer without a
    box counts as wrong), `miou` and `parse_rate`; texts give `edit_distance` (1 - reward).
    """
    rows = pl.DataFrame(predictions).join(
        pl.DataFrame(prompts), on="prompt_id", how="left", maintain_order="left"
    )
    rows = rows.with_columns(grounding=pl.col("task") == "grounding")
    return [
        _metric(name, values, group)
        for group in rows.partition_by("split", "grounding", maintain_order=True)
        for name, values in _values(group).items()
    ]


def _values(group: pl.DataFrame) -> dict[str, np.ndarray[Any, Any]]:
    reward = group["reward"].to_numpy()
    if not group["grounding"][0]:
        return {"edit_distance": 1.0 - reward}
    return {
        "ap50": (reward >= 0.5).astype(float),
        "ap75": (reward >= 0.75).astype(float),
        "miou": reward,
        "parse_rate": group["parse_ok"].to_numpy().astype(float),
    }


def _metric(name: str, values: np.ndarray[Any, Any], group: pl.DataFrame) -> Row:
    interval = mean_interval(values, clusters=group["image_sha256"].to_list())
    return {
        "name": name,
        "value": interval[0],
        "low": interval[1],
        "high": interval[2],
        "n": group.height,
        "split": group["split"][0],
    }
