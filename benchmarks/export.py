"""Rows per second of `perpo export`, for each target: python benchmarks/export.py

Lists of 20 completions with 26 token ids each, 15 % of the rewards 0 (`--zeros`), and images by
path, are written once; every target then reads them as a command does. Equal rewards at the end of
a list make it read the token ids, which decide. Seconds are those of the processor, so that other
work on the machine does not count; `completions_per_s` counts what was read.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.export.export_run import Request, export
from perpo_pipeline.export.targets import TARGETS
from perpo_pipeline.run import Run, make
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.writing import Recipe, Writer

Row = dict[str, Any]
LISTS, COMPLETIONS, TOKENS, PER_PART, ZEROS = 20_480, 20, 26, 1024, 0.15
QUESTION = "Please provide the bounding box coordinate of the region this sentence describes: glass"
WAYS = {**{name: Request(name) for name in TARGETS}, "trl, all pairs": Request("trl", pairs="all")}


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure the ways that the command line names; prints and returns a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lists", type=int, default=LISTS)
    parser.add_argument(
        "--zeros", type=float, default=ZEROS, help="share of the rewards that are 0"
    )
    parser.add_argument("--only", nargs="*", choices=WAYS, default=list(WAYS))
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        run = make_lists(Path(folder), asked.lists, asked.zeros)
        rows = [measure(run, name, Path(folder)) for name in asked.only]
    for row in rows:
        print(json.dumps(row))
    return rows


def measure(run: Run, name: str, folder: Path) -> Row:
    """One way, after a run of it that is not counted: it imports what is imported once."""
    request = WAYS[name]
    for attempt in ("first", "second"):
        out = folder / name / attempt
        began = time.process_time()
        export(run, "train", out, request)
        seconds = time.process_time() - began
    lists = int(run.latest("preferences").manifest["rows"])
    rows = int(
        (out / "README.md").read_text().split("| rows | ")[1].split(" |")[0].replace(",", "")
    )
    read = 0 if request.target.needs == "prompts" else lists * COMPLETIONS
    return {
        "name": name,
        "rows": rows,
        "rows_per_s": round(rows / seconds),
        "completions_per_s": round(read / seconds),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def make_lists(folder: Path, number: int, zeros: float = ZEROS) -> Run:
    """A run with prompts and preferences of that many lists."""
    scenes = {"source": "testbed", "num_prompts": 1}
    settings = {"run": "export", "data_root": str(folder / "data")}
    config = RunConfig.model_validate(settings | {"prepare": {"train": scenes, "test": scenes}})
    made = Run(config, quiet=True)
    image = folder / "photo.png"
    Image.new("RGB", (640, 480)).save(image)
    rng = np.random.default_rng(0)
    starts = range(0, number, PER_PART)
    parts = [range(start, min(start + PER_PART, number)) for start in starts]
    prompts = _write(made, "prompts", {}, [[_prompt(i, image) for i in part] for part in parts])
    lists = [[_list(i, rng, zeros) for i in part] for part in parts]
    preferences = _write(made, "preferences", {"prompts": prompts}, lists)
    given = {"prompts": prompts.path, "preferences": preferences.path}
    return Run(config, quiet=True, inputs=given)


def _write(run: Run, artifact: str, inputs: dict[str, Version], parts: list[list[Row]]) -> Version:
    def work(writer: Writer) -> None:
        for index, rows in enumerate(parts):
            writer.write_part(index, rows)

    return make(run, Recipe(artifact, "train", "made", 1, {"made": 1}, inputs), work)


def _prompt(index: int, image: Path) -> Row:
    return {
        "prompt_id": f"{index:016x}",
        "dataset": "made",
        "split": "train",
        "task": "grounding",
        "source_row": str(index),
        "place": f"train.jsonl:{index}",
        "image": {"bytes": None, "path": str(image)},
        "image_sha256": "0" * 64,
        "image_notes": [],
        "width": 640,
        "height": 480,
        "prompt": f"{QUESTION} {index}",
        "gt_box": [1.0, 2.0, 3.0, 4.0],
    }


def _list(index: int, rng: np.random.Generator, zeros: float) -> Row:
    drawn = np.where(rng.random(COMPLETIONS) < zeros, 0.0, rng.random(COMPLETIONS))
    rewards = np.sort(drawn)[::-1].tolist()
    return {
        "prompt_id": f"{index:016x}",
        "task": "grounding",
        "completions": [f"[0.{j:02d}, 0.19, 0.36, 0.59]" for j in range(COMPLETIONS)],
        "completion_token_ids": rng.integers(0, 32_000, (COMPLETIONS, TOKENS)).tolist(),
        "finish_reasons": ["stop"] * COMPLETIONS,
        "rewards": rewards,
        "parse_ok": [True] * COMPLETIONS,
        "counts": [1] * COMPLETIONS,
        "margin": rewards[0] - rewards[-1],
    }


if __name__ == "__main__":
    main()
