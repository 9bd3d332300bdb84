"""10,000,000 samples through `perpo score` and `perpo filter`, beside Polars in memory.

The peer does the same work as one would write it by hand for data that fits in memory: it reads all
Parquet parts, uses the same readers and IoU and one group-by, and writes the lists that stay. Each
runs in its own process, whose peak memory the kernel reports.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from perpo_pipeline.store.artifacts import Version, open_version
from perpo_pipeline.store.schemas import PROMPTS, SAMPLES
from perpo_pipeline.store.writing import Recipe, open_writer

Row = dict[str, Any]
SIZE = (640, 480)
SAMPLES_PER_PROMPT, PROMPTS_PER_PART, ROWS = 20, 512, 10_000_000
MIN_MARGIN, MAX_LISTS = 0.3, 3000
CONFIG = f"""
run: stream
prepare: {{train: {{source: testbed, num_prompts: 1}}, test: {{source: testbed, num_prompts: 1}}}}
filter: {{min_margin: {MIN_MARGIN}, max_lists: {MAX_LISTS}}}
"""


def measure_stream(rows: int = ROWS, *, with_peer: bool = True) -> Row:
    """Rates and peak memory of both ways, on the same artifacts in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "run.yaml").write_text(CONFIG)
        # In a separate process, because a child's peak memory starts with that of its parent.
        _timed([sys.executable, __file__, "--make", ".", "--rows", str(rows)], root)
        total = open_version(root / "data/stream/samples/train").manifest["rows"]
        stages = [
            _timed(
                [
                    sys.executable,
                    "-m",
                    "perpo_pipeline.cli",
                    stage,
                    "--config",
                    "run.yaml",
                    "--quiet",
                ],
                root,
            )
            for stage in ("score", "filter")
        ]
        found: Row = {
            "name": "stream",
            "rows_per_s": total / sum(seconds for seconds, _ in stages),
            "peak_gib": max(peak for _, peak in stages),
            "rows": total,
            "seconds": {"score": stages[0][0], "filter": stages[1][0]},
            "peer_rows_per_s": None,
        }
        if with_peer:
            seconds, peak = _timed([sys.executable, __file__, "--peer", "."], root)
            found |= {"peer_rows_per_s": total / seconds, "peer_peak_gib": peak}
    return found


def make_artifacts(root: Path, prompts: int) -> Version:
    """Prompts and samples with answers near the truth; a tenth of the answers are no boxes."""
    asked = _make_prompts(root / "data/stream/prompts/train", prompts)
    recipe = Recipe("samples", "train", "sample", 1, {"benchmark": prompts}, {"prompts": asked})
    with open_writer(root / "data/stream/samples/train", recipe) as writer:
        for index, start in enumerate(range(0, prompts, PROMPTS_PER_PART)):
            count = min(PROMPTS_PER_PART, prompts - start)
            writer.write_part(index, _samples(start, count))
        return writer.finish()


def _make_prompts(place: Path, prompts: int) -> Version:
    recipe = Recipe("prompts", "train", "prepare", 1, {"benchmark": prompts})
    with open_writer(place, recipe) as writer:
        for index, start in enumerate(range(0, prompts, 2 * PROMPTS_PER_PART)):
            writer.write_part(index, _prompts(start, min(2 * PROMPTS_PER_PART, prompts - start)))
        return writer.finish()


def _keys(start: int, count: int) -> list[str]:
    return [f"{number:016x}" for number in range(start, start + count)]


def _true_boxes(start: int, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    rng = np.random.default_rng([1, start // PROMPTS_PER_PART])
    corner = rng.uniform(0.0, 0.5, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(0.1, 0.45, (count, 2))], axis=1)


def _prompts(start: int, count: int) -> pa.Table:
    parts = [
        _true_boxes(s, min(PROMPTS_PER_PART, start + count - s))
        for s in range(start, start + count, PROMPTS_PER_PART)
    ]
    boxes = np.concatenate(parts) * np.tile(SIZE, 2)
    keys = _keys(start, count)
    columns: Row = {
        "prompt_id": keys,
        "dataset": ["refcoco_train"] * count,
        "split": ["train"] * count,
        "task": ["grounding"] * count,
        "source_row": keys,
        "place": keys,
        "image": [{"bytes": None, "path": f"train2014/COCO_train2014_{key}.jpg"} for key in keys],
        "image_sha256": [key * 4 for key in keys],
        "image_notes": [[]] * count,
        "width": [SIZE[0]] * count,
        "height": [SIZE[1]] * count,
        "prompt": [f"Please provide the bounding box coordinate of object {key}" for key in keys],
        "gt_text": [None] * count,
        "gt_box": boxes.tolist(),
        "gt_boxes": [None] * count,
        "gt_polygon": [None] * count,
        "gt_point": [None] * count,
    }
    return pa.table(
        [pa.array(columns[f.name], f.type) for f in PROMPTS.columns], schema=PROMPTS.columns
    )


def _samples(start: int, count: int) -> pa.Table:
    n = count * SAMPLES_PER_PROMPT
    rng = np.random.default_rng([2, start])
    boxes = np.repeat(_true_boxes(start, count), SAMPLES_PER_PROMPT, axis=0)
    off = np.clip(boxes + rng.normal(0, rng.choice([0.01, 0.1, 0.3], (n, 1)), (n, 4)), 0, 1)
    off = np.sort(off.reshape(n, 2, 2), axis=1).reshape(n, 4)
    text = pl.DataFrame(off, schema=["a", "b", "c", "d"]).select(
        pl.when(pl.Series(rng.random(n) < 0.1))
        .then(pl.lit("I cannot see it."))
        .otherwise(pl.format("[{}, {}, {}, {}]", *(pl.col(c).round(2) for c in "abcd")))
    )
    tokens = rng.integers(0, 32_000, n * 26, dtype=np.int32)
    columns: Row = {
        "prompt_id": np.repeat(_keys(start, count), SAMPLES_PER_PROMPT).tolist(),
        "sample_id": np.tile(np.arange(SAMPLES_PER_PROMPT, dtype=np.int32), count),
        "completion": text.to_series().to_arrow(),
        "completion_token_ids": pa.ListArray.from_arrays(
            pa.array(np.arange(0, n * 26 + 1, 26, dtype=np.int32)), pa.array(tokens)
        ),
        "finish_reason": ["stop"] * n,
        "seed": np.zeros(n, dtype=np.int64),
        "sampler_logprob": -rng.random(n),
        "resized": pa.nulls(n, pa.list_(pa.int32())),
    }
    return pa.table(
        [_as(columns[field.name], field.type) for field in SAMPLES.columns], schema=SAMPLES.columns
    )


def _as(column: Any, kind: pa.DataType) -> pa.Array:
    return (column if isinstance(column, pa.Array) else pa.array(column, kind)).cast(kind)


def _timed(command: list[str], root: Path) -> tuple[float, float]:
    """Seconds and peak GiB of a command."""
    started = time.monotonic()
    process = subprocess.Popen(
        command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{errors}")
    return time.monotonic() - started, usage.ru_maxrss / 2**20


def in_memory(root: Path) -> None:
    """The peer: all rows at once, in Polars and NumPy."""
    from perpo_pipeline.answers.reading import read_boxes
    from perpo_pipeline.rewards.grounding import iou_xyxy

    def read(artifact: str, columns: list[str]) -> pl.DataFrame:
        return pl.read_parquet(
            root / f"data/stream/{artifact}/train/*/part-*.parquet", columns=columns
        )

    samples = read("samples", SAMPLES.columns.names)
    truth = read("prompts", ["prompt_id", "width", "height", "gt_box"])
    rows = samples.join(truth, on="prompt_id", how="left", maintain_order="left")
    boxes = read_boxes(
        rows["completion"], "llava", frame="full", sizes=rows.select("width", "height").to_numpy()
    )
    true = rows["gt_box"].list.explode().to_numpy().reshape(-1, 4)
    rows = rows.with_columns(reward=pl.Series(iou_xyxy(boxes, true)))
    rows.select("prompt_id", "sample_id", "reward").write_parquet(root / "peer-scores.parquet")
    margin = (pl.col("reward").max() - pl.col("reward").min()).alias("margin")
    wide = rows.group_by("prompt_id").agg(margin).filter(pl.col("margin") >= MIN_MARGIN)
    kept = wide.sample(min(MAX_LISTS, wide.height), seed=0).select("prompt_id")
    lists = (
        rows.join(kept, on="prompt_id", how="semi")
        .group_by("prompt_id")
        .agg("completion", "completion_token_ids", "reward")
    )
    lists.write_parquet(root / "peer-lists.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, help="be the peer, on the artifacts in this folder")
    parser.add_argument("--make", type=Path, help="make the artifacts in this folder")
    parser.add_argument("--rows", type=int, default=ROWS)
    options = parser.parse_args()
    if options.peer is not None:
        in_memory(options.peer)
    elif options.make is not None:
        make_artifacts(options.make, options.rows // SAMPLES_PER_PROMPT)
    else:
        print(json.dumps(measure_stream(options.rows), indent=2))


if __name__ == "__main__":
    main()
