"""`perpo train` without ZeRO and with it, on random weights: time per step, and memory.

    python benchmarks/train_zero.py --preset cpu
    python benchmarks/train_zero.py --preset h200                       (LLaVA-1.5-7B's shape, bf16)
    python benchmarks/train_zero.py --preset h200 --num-processes 8 --ways zero2 zero3

It runs real commands on random lists (20 boxes as answers, 8 lists per step, LoRA of rank 128, as
in the paper's grounding recipe), one after the other, so use a quiet machine. The figures come from
the training log, without the first steps. A way that fails (without DeepSpeed, or out of memory) is
recorded with its message. It needs torch, transformers, peft, pydantic and pyarrow, and the extra
`deepspeed` for the ways with ZeRO; a 7B model takes 14 GB of disk.
"""

import argparse
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

if importlib.util.find_spec("perpo_pipeline") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
os.environ["HF_HUB_OFFLINE"] = "1"

import pyarrow.parquet as pq
import torch
from figures import save
from made_lists import FORMAT, FRAME, write_lists
from train_step import LLAVA_7B, SMALLER, TINY
from train_step_models import Shape, model_config
from transformers import AutoModelForImageTextToText

from perpo_pipeline.config.file import load_config
from perpo_pipeline.run import Run
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_without_weights

PRESETS: dict[str, tuple[Shape, str]] = {
    "dry": (replace(TINY, tile_px=56, vocab=704), "float32"),
    "cpu": (replace(SMALLER, tile_px=112, rank=16), "float32"),
    "h200": (LLAVA_7B, "bfloat16"),
}
WAYS = ("none", "zero2", "zero3", "zero3-offload")
ANSWERS = 20
WARM_UP = 3  # steps
SOURCE = Path(__file__).resolve().parent.parent / "src"
CONFIG = """
run: z
data_root: {folder}
model: {{id: {base}, dtype: {dtype}, box_format: {format}, box_frame: {frame}}}
prepare:
  train: {{source: testbed, num_prompts: {lists}}}
eval: {{splits: [train]}}
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


class Failed(Exception):
    """A command failed; the message is the end of what it printed."""


def perpo(folder: Path, *arguments: str) -> float:
    """Run a command there; returns its seconds. Raises Failed."""
    start = time.perf_counter()
    paths = [str(SOURCE), os.environ.get("PYTHONPATH", "")]
    ran = subprocess.run(
        [sys.executable, "-m", "perpo_pipeline.cli", *arguments, "--config", "z.yaml", "--quiet"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    if ran.returncode:
        raise Failed(f"perpo {' '.join(arguments)}: {ran.stderr[-1000:].strip()}")
    return time.perf_counter() - start


def measure(folder: Path, preferences: Path, way: str, num_processes: int) -> dict[str, Any]:
    """Train one way; returns the figures from its log, or a note of how it failed."""
    row: dict[str, Any] = {"way": way, "processes": num_processes, "note": ""}
    flags = [] if way == "none" else ["--deepspeed", way]
    several = ["--num-processes", str(num_processes)] if num_processes > 1 else []
    try:
        # Each run computes its own reference log-probabilities: they count in its seconds.
        given = ("--preferences", str(preferences), "--out", way)
        seconds = perpo(folder, "train", *given, *flags, *several)
    except Failed as failed:
        print(f"{way}: {failed}", file=sys.stderr)
        return row | {"note": str(failed)}
    (part,) = (folder / way).glob("*/part-*.parquet")
    log = pq.read_table(part).to_pylist()[WARM_UP:]
    rates = [entry["tokens_per_s"] for entry in log]
    return row | {
        "step_s": statistics.median(entry["tokens"] / entry["tokens_per_s"] for entry in log),
        "tokens_per_s": statistics.median(rates),
        "mfu": median_of(log, "mfu"),
        "peak_memory_gib": max((e["peak_memory_gib"] or 0.0 for e in log), default=0.0) or None,
        "whole_command_s": seconds,
        "losses": [entry["loss"] for entry in log],
    }


def median_of(log: list[dict[str, Any]], name: str) -> float | None:
    found = [entry[name] for entry in log if entry[name] is not None]
    return statistics.median(found) if found else None


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table; `loss off by` compares with the first way that ran."""
    lines = [
        "| deepspeed | s per step | tokens/s | MFU | peak GiB | command s | loss off by |",
        "|---|---|---|---|---|---|---|",
    ]
    first = next((row["losses"] for row in rows if not row["note"]), [])
    for row in rows:
        if row["note"]:
            lines.append(f"| {row['way']} | failed | | | | | |")
            continue
        off = max(abs(a - b) for a, b in zip(row["losses"], first, strict=True))
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
        num_lists = chosen.steps * chosen.batch_size
        config = folder / "z.yaml"
        config.write_text(
            CONFIG.format(
                folder=folder.resolve() / "data",
                base=folder.resolve() / "base",
                format=FORMAT,
                frame=FRAME,
                lists=num_lists,
                dtype=dtype,
                batch=chosen.batch_size,
                rank=shape.rank,
                alpha=2 * shape.rank,
            )
        )
        preferences = write_lists(Run(load_config(config), quiet=True), num_lists, ANSWERS).path
        rows: list[dict[str, Any]] = []
        for way in chosen.ways:
            rows.append(measure(folder, preferences.resolve(), way, chosen.num_processes))
            save(chosen.json, rows)
    finally:
        if chosen.keep is None:
            shutil.rmtree(folder)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{chosen.num_processes} process(es), {where}, {dtype}, {chosen.steps} steps of "
        f"{chosen.batch_size} lists\n\n{table(rows)}"
    )


if __name__ == "__main__":
    main()
