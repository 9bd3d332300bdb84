"""How fast `perpo browse` is on many prompts, and how much memory it takes.

    python benchmarks/browse_speed.py --json browse.json
    python benchmarks/browse_speed.py --prompts 5000

Writes a run of made-up prompts, 20 samples each, lists and the predictions of four models through
the store's writers, with the parts that the stages write, then starts `perpo browse` on it and asks
for pages as a browser does. `first list` is from the start of the command to the last byte of the
first page; beside it stands the processor time of all threads until then, which other programs
disturb less. Every other figure is from the request to the last byte of the answer. Each kind of
request is made several times, with states that were not asked for before; median and largest are
printed. `peak memory` is that of the server's process.
"""

import argparse
import io
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import psutil
import pyarrow as pa
import yaml
from PIL import Image

from perpo_pipeline.answers.boxes import REFERRING_PROMPT
from perpo_pipeline.config.file import load_config
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.prepare.entries import prompt_id
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.schemas import ALL
from perpo_pipeline.store.writing import Recipe, open_writer
from perpo_pipeline.vlm.images import image_sha256

SAMPLES, IMAGES, SIDE = 20, 64, 256
PROMPTS_PER_PART, ANSWERED_PER_PART, LISTS_PER_PART = 1024, 512, 1024
MODELS = ("base", "sft", "dpo", "perpo")
WORDS = ("glass", "dog", "left", "behind", "burger", "red", "chair", "person", "tall", "second")
TIMES = 5

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> Row:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=50_000, help="prompts of each split")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        config = make_run(Path(folder), options.prompts)
        result = {"prompts": options.prompts, "samples": SAMPLES} | measure(config)
    for name, figure in result.items():
        print(f"{name:<28} {figure}")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return result


def make_run(folder: Path, num_prompts: int) -> Path:
    """Write the artifacts of a run with this many prompts; returns its file."""
    source = {"source": "testbed", "num_prompts": num_prompts}
    settings = {
        "run": "many",
        "data_root": str(folder / "data"),
        "prepare": {"train": source, "test": source},
        "filter": {"min_margin": 0.5},
        "train": {"methods": {name: {} for name in MODELS[1:]}},
        "eval": {"conditions": []},
    }
    file = folder / "many.yaml"
    file.write_text(yaml.safe_dump(settings))
    config, images = load_config(file), _images()
    rng = np.random.default_rng(0)
    sampled = _write_prompts(config, "train", num_prompts, images)
    rewards = rng.beta(0.7, 0.7, (num_prompts, SAMPLES))
    _write_samples(config, sampled, rewards)
    tested = _write_prompts(config, "test", num_prompts, images)
    for model in MODELS:
        _write_predictions(config, tested, model, rng.beta(2, 1, num_prompts))
    return file


def _images() -> list[bytes]:
    """Noisy pictures, which no format makes small: about 100 kB each."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(IMAGES):
        pixels = rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, format="JPEG", quality=90)
        found.append(sink.getvalue())
    return found


def _write(
    config: RunConfig,
    artifact: str,
    variant: str,
    inputs: dict[str, Version],
    parts: Iterator[dict[str, list[Row]]],
) -> Version:
    """Write one artifact; each part is its rows, by table."""
    recipe = Recipe(artifact, variant, "made-up", 1, {"variant": variant}, inputs)
    with open_writer(config.run_dir / artifact / variant, recipe) as writer:
        for index, tables in enumerate(parts):
            for table, rows in sorted(tables.items(), key=lambda item: item[0] == artifact):
                data = pa.Table.from_pylist(rows, ALL[table].columns)
                writer.write_part(index, data, table)
        return writer.finish()


def _starts(number: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, number)) for start in range(0, number, size))


def _write_prompts(config: RunConfig, split: str, number: int, images: list[bytes]) -> Version:
    hashes = [image_sha256(data) for data in images]
    rng = np.random.default_rng(len(split))

    def row(at: int) -> Row:
        expression = " ".join(rng.choice(WORDS, 4)) + f" {at}"
        return {
            "prompt_id": prompt_id("made-up", split, str(at)),
            "dataset": f"made-up-{at % 3}",
            "split": split,
            "task": "grounding",
            "source_row": str(at),
            "place": f"made-up.jsonl:{at}",
            "image": {"bytes": images[at % IMAGES], "path": None},
            "image_sha256": hashes[at % IMAGES],
            "image_notes": [],
            "width": SIDE,
            "height": SIDE,
            "prompt": REFERRING_PROMPT.format(expression=expression),
            "gt_box": [10.0, 20.0, 110.0, 120.0],
        }

    parts = ({"prompts": [*map(row, part)]} for part in _starts(number, PROMPTS_PER_PART))
    return _write(config, "prompts", split, {}, parts)


def _ids(prompts: Version) -> list[str]:
    return list(prompts.table(columns=["prompt_id"])["prompt_id"].to_pylist())


def _answer(at: int) -> Row:
    text = f"[0.{at % 90 + 10}, 0.{at % 80 + 10}, 0.{at % 70 + 20}, 0.{at % 60 + 30}]"
    ids = [at % 30_000, *range(20)]
    return {"completion": text, "completion_token_ids": ids, "finish_reason": "stop"}


def _write_samples(config: RunConfig, prompts: Version, rewards: Any) -> None:
    ids = _ids(prompts)
    starts = list(_starts(len(ids), ANSWERED_PER_PART))

    def samples(part: range) -> list[Row]:
        return [
            {"prompt_id": ids[i], "sample_id": n, **_answer(i * SAMPLES + n)}
            | {"seed": n, "sampler_logprob": -10.0}
            for i in part
            for n in range(SAMPLES)
        ]

    def scores(part: range) -> list[Row]:
        box = [10.0, 20.0, 110.0, 120.0]
        return [
            {"prompt_id": ids[i], "sample_id": n, "reward": float(rewards[i, n])}
            | {"parse_ok": True, "box": box}
            for i in part
            for n in range(SAMPLES)
        ]

    sampled = _write(
        config, "samples", "train", {"prompts": prompts}, ({"samples": samples(p)} for p in starts)
    )
    scored = _write(
        config, "scores", "train", {"samples": sampled}, ({"scores": scores(p)} for p in starts)
    )
    margins = rewards.max(1) - rewards.min(1)
    limit = np.quantile(margins, 0.2)
    kept = np.flatnonzero(margins >= limit)
    dropped = [
        {"prompt_id": ids[i], "reason": "margin_too_small", "margin": float(margins[i])}
        for i in np.flatnonzero(margins < limit)
    ]

    def ranked(i: int) -> Row:
        order = np.argsort(-rewards[i], kind="stable")
        answers = [_answer(i * SAMPLES + int(n)) for n in order]
        return {
            "prompt_id": ids[i],
            "task": "grounding",
            "completions": [one["completion"] for one in answers],
            "completion_token_ids": [one["completion_token_ids"] for one in answers],
            "finish_reasons": ["stop"] * SAMPLES,
            "rewards": rewards[i][order].tolist(),
            "parse_ok": [True] * SAMPLES,
            "counts": [1] * SAMPLES,
            "margin": float(margins[i]),
        }

    chunks = _starts(len(kept), LISTS_PER_PART)
    lists = (
        {"preferences": [ranked(int(kept[i])) for i in part]}
        | ({"dropped": dropped} if part.start == 0 else {})
        for part in chunks
    )
    _write(config, "preferences", "train", {"scores": scored}, lists)


def _write_predictions(config: RunConfig, prompts: Version, model: str, rewards: Any) -> None:
    ids = _ids(prompts)

    def row(i: int) -> Row:
        return {
            "prompt_id": ids[i],
            "image_prompt_id": ids[i],
            **_answer(i),
            "reward": float(rewards[i]),
            "parse_ok": True,
            "box": [10.0, 20.0, 110.0, 120.0],
        }

    parts = ({"predictions": [*map(row, p)]} for p in _starts(len(ids), ANSWERED_PER_PART))
    _write(config, "predictions", f"{model}@test", {"prompts": prompts}, parts)


def measure(config: Path) -> Row:
    """Start the server, ask for pages, and return times in seconds and memory in MiB."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "perpo_pipeline.cli", "browse"]
    process = subprocess.Popen(
        [*command, "--config", str(config), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        first = _get(f"{address}lists")
        result: Row = {"first list, s": round(time.perf_counter() - start, 2)}
        result["first list, processor s"] = round(
            sum(psutil.Process(process.pid).cpu_times()[:2]), 2
        )
        ids = re.findall(rb"prompt=([0-9a-f]{16})", first)
        result |= _timed(address, _requests(ids))
        result["peak memory, MiB"] = round(_peak(process.pid) / 2**20)
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
    return result


def _requests(ids: Sequence[bytes]) -> dict[str, Callable[[int], str]]:
    """Addresses that were not asked for before, by what they show."""
    columns = ["margin", "mean", "best", "worst", "parsed"]
    return {
        "sort": lambda n: f"lists?sort=-{columns[n]}",
        "sort and filter": lambda n: f"samples?sort=mean&min_margin=0.{n + 3}&dataset=made-up-1",
        "search": lambda n: f"lists?q={WORDS[n]}+{WORDS[n + 1]}",
        "disagreement": lambda n: (
            f"predictions/test?a={MODELS[n % 4]}&b={MODELS[n % 3 + 1]}"
            f"&sort=-disagree&min_disagree=0.{n + 1}"
        ),
        "last page": lambda n: f"samples?sort=-{columns[n]}&page=1000",
        "one prompt": lambda n: f"lists?prompt={ids[n].decode()}",
    }


def _timed(address: str, requests: dict[str, Callable[[int], str]]) -> Row:
    found: Row = {}
    for name, request in requests.items():
        times = []
        for turn in range(TIMES):
            start = time.perf_counter()
            page = _get(address + request(turn))
            times.append(time.perf_counter() - start)
        found[f"{name}, s"] = f"{statistics.median(times):.3f} (largest {max(times):.3f})"
    thumbs = re.findall(rb'src="/(image/[^"]+)"', page)
    start = time.perf_counter()
    for thumb in thumbs:
        _get(address + thumb.decode())
    found[f"{len(thumbs)} images, s"] = round(time.perf_counter() - start, 2)
    return found


def _peak(process: int) -> float:
    """The largest resident memory that the process had, bytes."""
    status = Path(f"/proc/{process}/status")
    if status.is_file():
        (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
        return float(peak) * 1024
    return float(psutil.Process(process).memory_info().rss)


def _get(url: str) -> bytes:
    with urlopen(url, timeout=60) as answer:
        return bytes(answer.read())


if __name__ == "__main__":
    main()
