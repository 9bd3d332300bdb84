"""Predictions and prompts by hand, for tests of metrics."""

import pyarrow as pa

from perpo_pipeline.store.schemas import PREDICTIONS, PROMPTS

BOX = [0.0, 0.0, 1.0, 1.0]


def tables(*rows):
    """Predictions and prompts of rows (task, reward or completion, and changes)."""
    predictions, prompts = [], []
    for index, (task, answer, changes) in enumerate(rows):
        is_text = isinstance(answer, str)
        predictions.append(
            {
                "prompt_id": str(index),
                "completion": answer if is_text else "",
                "reward": 0.5 if is_text else answer,
                "parse_ok": changes.pop("parse_ok", True),
                "finish_reason": changes.pop("finish_reason", "stop"),
            }
        )
        prompts.append(
            {
                "prompt_id": str(index),
                "dataset": "d",
                "split": "test",
                "task": task,
                "image_sha256": str(index),
                "width": 100,
                "height": 100,
                **changes,
            }
        )
    schemas = (PREDICTIONS.columns, PROMPTS.columns)
    return [
        pa.table({f.name: pa.array([r.get(f.name) for r in made], f.type) for f in schema})
        for made, schema in zip((predictions, prompts), schemas, strict=True)
    ]


def values(rows, split="test", dataset="all"):
    chosen = [r for r in rows if (r["split"], r["dataset"]) == (split, dataset)]
    assert len({r["name"] for r in chosen}) == len(chosen)
    return {r["name"]: r["value"] for r in chosen}


def grounding(*rewards, **changes):
    return [("grounding", reward, {"gt_box": BOX, **changes}) for reward in rewards]
