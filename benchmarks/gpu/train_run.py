"""`perpo train` on the embedded model: a whole PerPO run in bf16, with its log as JSON.

    python benchmarks/gpu/train_run.py --json train.json
    python benchmarks/gpu/train_run.py --preset dry           (a few steps on the CPU)
    python benchmarks/gpu/train_run.py --preferences data/demo/preferences/train

Without --preferences it makes its own lists. It runs the real command in a process of its own; the
figures come from the training log. It needs torch, transformers, peft, pydantic and pyarrow.
"""

import argparse
import importlib.util
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if importlib.util.find_spec("perpo_pipeline") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
os.environ["HF_HUB_OFFLINE"] = "1"

import pyarrow.parquet as pq
from figures import save
from made_lists import FORMAT, FRAME, write_lists

from perpo_pipeline.config.file import load_config
from perpo_pipeline.run import Run

SOURCE = Path(__file__).resolve().parents[2] / "src"
PRESETS = {"gpu": ("bfloat16", "cuda", 2000, 20), "dry": ("float32", "cpu", 24, 4)}
WARM_UP = 3  # steps, which compile
CONFIG = """
run: t
model: {{id: testbed, dtype: {dtype}, device: {device}, box_format: {format}, box_frame: {frame}}}
prepare: {{train: {{source: testbed, num_prompts: {lists}}}}}
eval: {{splits: [train]}}
train:
  batch_size: 8
  lora: {{rank: 64, alpha: 128}}
  row_lengths: {row_lengths}
{levers}  methods: {{perpo: {{learning_rate: 5.0e-4, beta: 1.0}}}}
"""
KEPT = ("step", "loss", "reward_accuracy", "kl", "grad_norm", "tokens", "tokens_per_s", "mfu")
KEPT += ("peak_memory_gib",)


def main() -> None:
    options = parse()
    dtype, device, lists, answers = PRESETS[options.preset]
    with tempfile.TemporaryDirectory(prefix="perpo-train-") as name:
        folder = Path(name)
        config = folder / "t.yaml"
        config.write_text(
            CONFIG.format(
                dtype=dtype,
                device=device,
                format=FORMAT,
                frame=FRAME,
                lists=lists,
                row_lengths=options.row_lengths,
                levers=f"  levers: [{', '.join(options.lever)}]\n" if options.lever else "",
            )
        )
        preferences = options.preferences
        if preferences is None:
            os.chdir(folder)
            preferences = write_lists(Run(load_config(config)), lists, answers).path
        seconds = train(folder, preferences.resolve())
        rows = read_log(folder / "adapter")
    found = summarise(rows) | {"command_s": seconds, "levers": options.lever}
    save(options.json, found | {"preset": options.preset, "row_lengths": options.row_lengths})
    for key, value in found.items():
        print(f"{key:28s} {value}")


def parse() -> argparse.Namespace:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--preset", choices=PRESETS, default="gpu")
    parser.add_argument("--preferences", type=Path, help="lists of a finished run of the testbed")
    parser.add_argument("--lever", nargs="+", default=[], help="entries of train.levers")
    parser.add_argument("--row-lengths", choices=("any", "bucketed"), default="any")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


def train(folder: Path, preferences: Path) -> float:
    """Run the command in `folder`, its output on this one's; returns its seconds."""
    command = [sys.executable, "-m", "perpo_pipeline.cli", "train", "--config", "t.yaml"]
    command += ["--method", "perpo", "--preferences", str(preferences), "--out", "adapter"]
    paths = [str(SOURCE), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment.setdefault("TORCH_LOGS", "recompiles")
    # run.sh stops a part with SIGTERM; the command must not go on compiling and hold its output.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    start = time.perf_counter()
    ended = subprocess.run(command, cwd=folder, env=environment, check=False)
    if ended.returncode:
        sys.exit(f"perpo train failed with exit code {ended.returncode}")
    return time.perf_counter() - start


def read_log(place: Path) -> list[dict[str, Any]]:
    (part,) = place.glob("*/part-*.parquet")
    rows: list[dict[str, Any]] = pq.read_table(part).to_pylist()
    return rows


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Steps, medians after the warm-up, and the log's first and last rows."""
    later = rows[WARM_UP:] or rows
    rates = [row["tokens_per_s"] for row in later if row["tokens_per_s"]]
    return {
        "steps": len(rows),
        "median_step_ms": statistics.median(1e3 * r["tokens"] / r["tokens_per_s"] for r in later),
        "median_tokens_per_s": statistics.median(rates),
        "mean_reward_accuracy": statistics.fmean(row["reward_accuracy"] for row in later),
        **{f"step_{row['step']}": {key: row[key] for key in KEPT} for row in (rows[0], rows[-1])},
    }


if __name__ == "__main__":
    main()
