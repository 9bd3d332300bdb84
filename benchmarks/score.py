"""Times the scoring of answers: ours beside the way people do it today.

    python benchmarks/score.py --json score.json

grounding   1,000,000 completions -> boxes -> IoU. Ours: `answers.read_boxes` and `iou_xyxy`.
            Peer: a loop over the answers with a compiled pattern and an IoU in plain Python, as in
            the evaluation scripts of the model families (in NumPy or torch, a row would be slower).
ocr         pairs of pages of 1,000 to 2,000 characters -> edit similarity. Ours:
            `edit_similarities`. Peer: bare `rapidfuzz.process.cpdist` of Levenshtein distances.
ocr-short   the same with texts of 5 to 40 characters, where the overhead counts most.
stream      10,000,000 rows through `perpo score` and `perpo filter`, beside Polars in memory
            (score_stream.py).

Each gets the texts in its own form (ours as an Arrow column, loops as a list), and both must give
the same rewards. Repeats are interleaved, so that a busy machine slows both equally; rates are
computed from medians. `peak_gib` is the peak resident memory of a separate process that makes the
texts and scores them once our way.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist

from perpo_pipeline.answers.reading import read_boxes
from perpo_pipeline.rewards.grounding import iou_xyxy
from perpo_pipeline.rewards.text import edit_similarities

Row = dict[str, Any]
Floats = npt.NDArray[np.float64]
WORKERS = 2
ONE_NUMBER = r"\s*(-?\d+(?:\.\d*)?|-?\.\d+)\s*"
LLAVA_BOX = re.compile(r"\[" + ",".join([ONE_NUMBER] * 4) + r"\]")


@dataclass(frozen=True)
class Case:
    """What is timed: `make(rows)` returns the arguments of `ours` and of `peer`.

    `as_rewards` turns the peer's results and its arguments into rewards to compare, untimed.
    """

    rows: int
    make: Callable[[int], tuple[tuple[Any, ...], tuple[Any, ...]]]
    ours: Callable[..., Floats]
    peer: Callable[..., Floats]
    as_rewards: Callable[..., Floats]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    timed = [name for name in options.case if name != "stream"]
    sizes = {name: options.rows or CASES[name].rows for name in timed}
    # The peaks first: a child starts with the peak of its parent, which is still small here.
    peaks = {name: peak_gib(name, sizes[name]) for name in timed}
    rows = []
    if "stream" in options.case:
        rows.append(stream(options.rows))
        print_row(rows[-1])
    for name in timed:
        rows.append(measure(name, sizes[name], options.repeats) | {"peak_gib": peaks[name]})
        print_row(rows[-1])
    if options.json:
        result = {"header": describe(options), "rows": rows}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*CASES, "stream"]
    parser.add_argument("--case", nargs="+", choices=names, default=names, metavar="CASE")
    parser.add_argument("--rows", type=int, help="rows of each case (default: see above)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    return parser.parse_args(arguments)


def measure(name: str, rows: int, repeats: int) -> Row:
    """The rates of one case."""
    case = CASES[name]
    for_ours, for_peer = case.make(rows)
    peers = case.as_rewards(case.peer(*for_peer), *for_peer)
    compare(name, case.ours(*for_ours), peers)
    ours_s, peer_s = interleave(lambda: case.ours(*for_ours), lambda: case.peer(*for_peer), repeats)
    return {
        "name": name,
        "rows": rows,
        "rows_per_s": rows / statistics.median(ours_s),
        "peer_rows_per_s": rows / statistics.median(peer_s),
        "rows_per_s_range": [rows / max(ours_s), rows / min(ours_s)],
        "peer_rows_per_s_range": [rows / max(peer_s), rows / min(peer_s)],
    }


def stream(rows: int | None) -> Row:
    """The two commands on many rows, beside Polars in memory; a row like that of `measure`."""
    import score_stream

    return score_stream.measure_stream(rows or score_stream.ROWS)


def peak_gib(name: str, rows: int) -> float:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(resident_peak_gib, name, rows).result()


def resident_peak_gib(name: str, rows: int) -> float:
    case = CASES[name]
    for_ours, _ = case.make(rows)
    case.ours(*for_ours)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def compare(name: str, ours: Floats, peer: Floats) -> None:
    if ours.shape != peer.shape or not np.allclose(ours, peer, rtol=0, atol=1e-9):
        raise SystemExit(f"{name}: ours and the peer's rewards differ")


def interleave(
    ours: Callable[[], object], peer: Callable[[], object], repeats: int
) -> tuple[list[float], list[float]]:
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for way, taken in zip((ours, peer), seconds, strict=True):
            start = time.perf_counter()
            way()
            taken.append(time.perf_counter() - start)
    return seconds


# --- grounding -----------------------------------------------------------------------------------


def make_grounding(rows: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Answers in LLaVA's format: a box, sometimes in a sentence, twice, inverted or missing."""
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((rows, 2, 2)), axis=1).reshape(rows, 4)
    sizes = rng.integers(200, 641, (rows, 2))
    nudge = rng.normal(0, 0.05, (rows, 4))
    truths = np.sort((corners + nudge).reshape(rows, 2, 2), axis=1).reshape(rows, 4)
    gt = truths * np.tile(sizes, 2)
    kinds = rng.choice(5, rows, p=[0.8, 0.15, 0.02, 0.01, 0.02])
    texts = [
        write_answer(int(kind), box) for kind, box in zip(kinds, corners.tolist(), strict=True)
    ]
    as_lists = (texts, sizes.tolist(), gt.tolist())
    return (pa.array(texts), sizes, gt), as_lists


def write_answer(kind: int, box: list[float]) -> str:
    x1, y1, x2, y2 = box
    text = f"[{x1:.2f}, {y1:.2f}, {x2:.2f}, {y2:.2f}]"
    if kind == 1:
        return f"The region this sentence describes is at {text}."
    if kind == 2:
        return f"{text} or [0.10, 0.20, 0.30, 0.40]"
    if kind == 3:
        return f"[{x2:.2f}, {y2:.2f}, {x1:.2f}, {y1:.2f}]"
    return "I cannot find it in the image." if kind == 4 else text


def score_grounding(texts: pa.Array, sizes: npt.ArrayLike, gt: npt.ArrayLike) -> Floats:
    return iou_xyxy(read_boxes(texts, "llava", frame="full", sizes=sizes), gt)


def loop_grounding(texts: list[str], sizes: list[list[int]], gt: list[list[float]]) -> Floats:
    ious = []
    for text, (width, height), truth in zip(texts, sizes, gt, strict=True):
        match = LLAVA_BOX.search(text)
        if match is None:
            ious.append(0.0)
            continue
        x1, y1, x2, y2 = map(float, match.groups())
        ious.append(box_iou((x1 * width, y1 * height, x2 * width, y2 * height), truth))
    return np.array(ious)


def box_iou(box: Sequence[float], truth: Sequence[float]) -> float:
    ax1, ay1, ax2, ay2 = box
    bx1, by1, bx2, by2 = truth
    width = min(ax2, bx2) - max(ax1, bx1)
    height = min(ay2, by2) - max(ay1, by1)
    if width <= 0 or height <= 0:
        return 0.0
    overlap = width * height
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - overlap
    return overlap / union


# --- ocr -----------------------------------------------------------------------------------------


def make_pages(lengths: tuple[int, int], rows: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Texts of English letter frequencies, read with 2, 10 or 40 % of the letters wrong or lost."""
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"   eeetttaaooiinnsshhrrddlucmfwygpbvk,.", dtype=np.uint8)
    predictions, truths = [], []
    for length in rng.integers(*lengths, rows, endpoint=True):
        page, other = rng.choice(letters, (2, length))
        chance = rng.random(length)
        error_rate = rng.choice([0.02, 0.1, 0.4])
        read = np.where(chance < error_rate, other, page)[chance > error_rate / 3]
        predictions.append(read.tobytes().decode("ascii"))
        truths.append(page.tobytes().decode("ascii"))
    return (predictions, truths), (predictions, truths)


def score_ocr(predictions: list[str], truths: list[str]) -> Floats:
    return edit_similarities(predictions, truths, num_workers=WORKERS)


def bare_ocr(predictions: list[str], truths: list[str]) -> Floats:
    return cpdist(predictions, truths, scorer=Levenshtein.distance, workers=WORKERS)


def similarities(distances: Floats, predictions: list[str], truths: list[str]) -> Floats:
    longest = np.maximum([len(p) for p in predictions], [len(t) for t in truths])
    return 1 - distances / longest


def unchanged(rewards: Floats, *_: Any) -> Floats:
    return rewards


CASES = {
    "grounding": Case(1_000_000, make_grounding, score_grounding, loop_grounding, unchanged),
    "ocr": Case(20_000, partial(make_pages, (1000, 2000)), score_ocr, bare_ocr, similarities),
    "ocr-short": Case(500_000, partial(make_pages, (5, 40)), score_ocr, bare_ocr, similarities),
}


# --- output ------------------------------------------------------------------------------


def print_row(row: Row) -> None:
    peer = row["peer_rows_per_s"]
    beside = "" if peer is None else f"{peer:14,.0f} peer{row['rows_per_s'] / peer:8.2f} x"
    print(
        f"{row['name']:12s}{row['rows_per_s']:14,.0f} rows/s{beside:32s}{row['peak_gib']:8.2f} GiB",
        flush=True,
    )


def describe(options: argparse.Namespace) -> Row:
    packages = ("numpy", "polars", "pyarrow", "rapidfuzz")
    return {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "repeats": options.repeats,
        "workers": WORKERS,
    }


if __name__ == "__main__":
    main()
