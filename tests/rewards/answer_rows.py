"""Rows of answers with their truth, as rewards get them."""

from typing import Any

import polars as pl

from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.rewards.builtin import Answers


def answers(*rows: dict[str, Any]) -> Answers:
    schema = {
        "prompt_id": pl.String,
        "sample_id": pl.Int32,
        "completion": pl.String,
        "dataset": pl.String,
        "task": pl.String,
        "prompt": pl.String,
        "width": pl.Int32,
        "height": pl.Int32,
        "gt_text": pl.String,
        "gt_box": pl.List(pl.Float64),
        "gt_boxes": pl.List(pl.List(pl.Float64)),
        "gt_polygon": pl.List(pl.Float64),
        "gt_point": pl.List(pl.Float64),
    }
    whole = {"dataset": "d", "task": "vqa", "prompt": "?", "width": 100, "height": 100}
    table = [
        {name: {**whole, "prompt_id": f"p{i}", "sample_id": 0, **row}.get(name) for name in schema}
        for i, row in enumerate(rows)
    ]
    return Answers(pl.DataFrame(table, schema=schema), Reading())
