"""`perpo train` without ZeRO and with it, on random weights: time per step, and memory.

    python benchmarks/train_zero.py --preset cpu
    python benchmarks/train_zero.py --preset h200                       (LLaVA-1.5-7B's shape, bf16)
    python benchmarks/train_zero.py --preset h200 --num-processes 8 --ways zero2 zero3

It runs real commands on random lists (20 boxes as answers, 8 lists per step, LoRA of rank 128, as
in the paper's grounding recipe), one after the other, so use a quiet machine. The figures come from
the training log, without the first steps. It needs the extra `deepspeed`; a 7B model takes 14 GB of
disk.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from train_step import LLAVA_7B, SMALLER
from train_step_models import Shape, model_config
from transformers import AutoModelForImageTextToText

from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_without_weights

PRESETS: dict[str, tuple[Shape, str]] = {
    "cpu": (replace(SMALLER, tile_px=112, rank=16), "float32"),
    "h200": (LLAVA_7B, "bfloat16"),
}
WAYS = ("none", "zero2", "zero3", "zero3-offload")
ANSWERS = 20
WARM_UP = 3  # steps
CONFIG = """
run: z
model: {{id: {base}, dtype: {dtype}, box_format: llava, box_frame: full}}
prepare:
  train: {{source: perpo-json, path: lists.json}}
eval: {{splits: [train]}}
filter: {{min_margin: 0.5}}
train:
  batch_size: {batch}
  lora: {{rank: {rank}, alpha: {alpha}}}
  checkpoint_every: 10000
  methods: {{perpo: {{beta: 0.1, gamma: 0.5}}}}
"""


def write_base(folder: Path, shape: Shape, dtype: str) -> None:
    """A model of random weights with the embedded model's tokenizer, and images of its own size."""
    vlm = load_without_weights(resolve_model("testbed"))
    processor, config = vlm.processor, model_config(shape)
    side = shape.tile_px
    processor.image_processor.size = {"shortest_edge": side}
    processor.image_processor.crop_size = {"height": side, "width": side}
    processor.patch_size = config.vision_config.patch_size
    config.image_token_index = config.image_token_id = vlm.image_token_ids[0]
    config.text_config.eos_token_id = vlm.eos_token_ids[0]
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def write_lists(folder: Path, num_lists: int) -> None:
    """Released lists of random boxes, each with its own image, so that each is encoded."""
    from PIL import Image

    rng = random.Random(0)
    records = []
    for number in range(num_lists):
        name = f"{number}.png"
        Image.new("RGB", (336, 336), (number % 256, 99, 9)).save(folder / name)
        boxes = [
            f"[{', '.join(f'{rng.random() / 2 + at:.2f}' for at in (0, 0, 0.5, 0.5))}]"
            for _ in range(ANSWERS)
        ]
        records.append(
            {
                "image_id": number,
                "image_path": name,
                "question": "Where is the red shape?",
                "answer": "[0.10, 0.10, 0.90, 0.90]",
                "answers_gen": boxes,
                "iou_scores": [at / (ANSWERS - 1) for at in range(ANSWERS)],
            }
        )
    (folder / "lists.json").write_text(json.dumps(records))


def perpo(folder: Path, *arguments: str) -> float:
    """Run a command there; returns its seconds. Prints the end of its stderr if it fails."""
    start = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-m", "perpo_pipeline.cli", *arguments, "--config", "z.yaml", "--quiet"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if ran.returncode:
        sys.exit(f"perpo {' '.join(arguments)} failed:\n{ran.stderr[-3000:]}")
    return time.perf_counter() - start


def measure(folder: Path, way: str, num_processes: int) -> dict[str, Any]:
    """Train one way; returns the figures from its log."""
    flags = [] if way == "none" else ["--deepspeed", way]
    several = ["--num-processes", str(num_processes)] if num_processes > 1 else []
    # Each run computes its own reference log-probabilities: they count in its seconds.
    seconds = perpo(folder, "train", "--out", way, *flags, *several)
    log = pl.read_parquet(folder / way / "*" / "part-*.parquet")[WARM_UP:]
    taken = (log["tokens"] / log["tokens_per_s"]).to_list()
    return {
        "way": way,
        "processes": num_processes,
        "step_s": statistics.median(taken),
        "tokens_per_s": log["tokens_per_s"].median(),
        "mfu": log["mfu"].median(),
        "peak_memory_gib": log["peak_memory_gib"].max(),
        "whole_command_s": seconds,
        "losses": log["loss"].to_list(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table; the largest difference of a loss is relative to the first way."""
    lines = [
        "| deepspeed | s per step | tokens/s | MFU | peak GiB | command s | loss off by |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        off = max(abs(a - b) for a, b in zip(row["losses"], rows[0]["losses"], strict=True))
        mfu = "-" if row["mfu"] is None else f"{row['mfu']:.2f}"
        peak = "-" if row["peak_memory_gib"] is None else f"{row['peak_memory_gib']:.1f}"
        lines.append(
            f"| {row['way']} | {row['step_s']:.3f} | {row['tokens_per_s']:,.0f} | {mfu} | {peak} | "
            f"{row['whole_command_s']:.0f} | {off:.1g} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Write the run, train it each way, print the table."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS[:3])
    parser.add_argument("--num-processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="folder in which the model and the runs are kept")
    chosen = parser.parse_args()
    if chosen.steps <= WARM_UP:
        parser.error(f"--steps must be above {WARM_UP}: the first {WARM_UP} are left out")
    shape, dtype = PRESETS[chosen.preset]
    folder = chosen.keep or Path(tempfile.mkdtemp(prefix="train-zero-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if not (folder / "base").is_dir():
            write_base(folder / "base", shape, dtype)
        write_lists(folder, chosen.steps * chosen.batch_size)
        (folder / "z.yaml").write_text(
            CONFIG.format(
                base=folder.resolve() / "base",
                dtype=dtype,
                batch=chosen.batch_size,
                rank=shape.rank,
                alpha=2 * shape.rank,
            )
        )
        for stage in ("prepare", "filter"):
            perpo(folder, stage)
        rows = [measure(folder, way, chosen.num_processes) for way in chosen.ways]
    finally:
        if chosen.keep is None:
            shutil.rmtree(folder)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{chosen.num_processes} process(es), {where}, {dtype}, {chosen.steps} steps of "
        f"{chosen.batch_size} lists\n\n{table(rows)}"
    )
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
