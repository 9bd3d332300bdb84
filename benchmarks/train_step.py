"""Time one preference-training step several ways, side by side, on random weights.

    python benchmarks/train_step.py --preset cpu --json train_step.json
    python benchmarks/train_step.py --preset h200 --json train_step.json    (7B shapes, bf16, CUDA)
    python benchmarks/train_step.py --preset h200 --recipe     (a whole run over 3,000 lists, CUDA)

shared-prefix               ours: the prefix is read once for all completions of a list
concatenated-same-settings  one full row per completion, everything else as ours
concatenated                as the PerPO authors' code does it
trl                         TRL's DPOTrainer as documented for VLMs (pairs; needs trl, datasets)

A step is forward, loss and backward on LoRA weights, all on the same lists and weights; the
repeats of the ways are interleaved, so that a busy machine slows all alike, and medians are
reported. It needs torch, transformers, peft and a checkout. What is simplified: lists of one
regime are equally long, and batches are prepared before the clock starts.
"""

import argparse
import ctypes
import gc
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

if importlib.util.find_spec("perpo_pipeline") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded, and TRL would report its use

import transformers
from train_step_models import Regime, Shape, build_vlm, random_lists
from train_step_recipe import run_recipe
from train_step_variants import VARIANTS, Setup, Work, full_row_logps, full_rows

from perpo_pipeline.train.master_weights import MasterAdamW
from perpo_pipeline.train.throughput import FlopCounter, measured_peak

LLAVA_7B = Shape("llava", 4096, 11008, 32, 32, 32, 32064, (1024, 4096, 24, 16), 336, rank=128)
QWEN_7B = Shape("qwen2_5_vl", 3584, 18944, 28, 28, 4, 152064, (1280, 3420, 32, 16), 0, rank=128)
NEXT_7B = replace(LLAVA_7B, model_type="llava_next")
SMALL = Shape("llava", 1536, 4096, 2, 12, 12, 1024, (128, 512, 2, 2), 336, rank=32)
SMALLER = replace(SMALL, hidden=512, intermediate=1408, heads=8, kv_heads=8)
SMALL_NEXT = replace(SMALLER, model_type="llava_next", tile_px=84)
SMALL_QWEN = replace(SMALLER, model_type="qwen2_5_vl", kv_heads=2)

# On the CPU the last three are scaled down: smaller images, and answers shorter in proportion.
PRESETS: dict[str, dict[str, Regime]] = {
    "cpu": {
        "llava15-grounding": Regime(SMALL, (336, 336), 576, 600, 26, 20, lists=1),
        "llava15-grounding-n2": Regime(SMALL, (336, 336), 576, 600, 26, 2, lists=1),
        "llava-next-grounding": Regime(SMALL_NEXT, (168, 168), 192, 210, 3, 20, lists=1),
        "dense-ocr": Regime(SMALL_NEXT, (168, 168), 192, 210, 72, 20, lists=1, checkpointing=True),
        "qwen25-vl-grounding": Regime(SMALL_QWEN, (392, 392), 196, 230, 13, 20, lists=1),
    },
    "h200": {
        "llava15-grounding": Regime(LLAVA_7B, (336, 336), 576, 636, 26, 20, lists=8),
        "llava15-grounding-n2": Regime(
            LLAVA_7B, (336, 336), 576, 636, 26, 2, lists=8, full_lists=8
        ),
        # 640 x 672 fills 46 of 48 rows of features: 576 + 46 * (48 + a new line) tokens. The graph
        # of 20 full rows is too large for the card.
        "llava-next-grounding": Regime(
            NEXT_7B, (640, 672), 2830, 2890, 26, 20, lists=3, full_checkpointing=True
        ),
        "dense-ocr": Regime(NEXT_7B, (640, 672), 2830, 2920, 1000, 20, lists=1, checkpointing=True),
        "qwen25-vl-grounding": Regime(QWEN_7B, (560, 560), 400, 460, 26, 20, lists=8),
    },
}
PADDING = 7  # tokens: bf16 must be judged against what other padding changes, not against zero
OUT_OF_MEMORY = "out of memory"
Row = dict[str, Any]


@dataclass
class Timing:
    """The measurements of one variant; `note` says why it stopped."""

    work: Work
    seconds: list[float] = field(default_factory=list)  # for one list
    busy: list[float] = field(default_factory=list)  # the processor's, all threads together
    peak_gib: float | None = None
    logps: torch.Tensor | None = None
    note: str = ""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    on_cuda = options.preset == "h200"
    if on_cuda and not torch.cuda.is_available():
        raise SystemExit("--preset h200 needs a CUDA device")
    device = torch.device("cuda" if on_cuda else "cpu")
    dtype = torch.bfloat16 if on_cuda else torch.float32
    regimes = {name: PRESETS[options.preset][name] for name in options.regime}
    if options.recipe:
        for name, regime in regimes.items():
            print(f"{name}: {run_recipe(build_vlm(regime.shape, dtype, device)[0], regime)}")
        return
    # Every variant has one length, so each gets kernels for that length, not for dynamic ones.
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        result = compare_regimes(regimes, options, device, dtype)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def compare_regimes(
    regimes: dict[str, Regime],
    options: argparse.Namespace,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """What goes into the JSON; regimes of one shape that follow each other share the model."""
    peak = measured_peak(device, dtype) if device.type == "cuda" else None
    header, rows = describe(options, regimes, dtype, peak), []
    model = shape = None
    for name, regime in regimes.items():
        if regime.shape != shape:
            model = setup = None  # the last one goes before the next is built
            gc.collect()
            torch.cuda.empty_cache()
            torch.compiler.reset()
            model, shape = build_vlm(regime.shape, dtype, device), regime.shape
        lists = random_lists(model[0], regime, max(regime.lists, regime.full_lists))
        setup = Setup(*model, regime, lists)
        found, header["max_abs_dlogp_nats"][name] = compare(name, setup, options, peak)
        print_table(name, regime, found)
        rows += found
    return {"header": header, "rows": rows}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    regimes = list(PRESETS["cpu"])
    parser.add_argument("--preset", choices=list(PRESETS), default="cpu")
    parser.add_argument("--regime", nargs="+", choices=regimes, help="default: all")
    parser.add_argument("--variant", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="processor threads (default: torch's)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--recipe", action="store_true", help="time a whole run over 3,000 lists")
    options = parser.parse_args(arguments)
    if options.recipe and options.preset == "cpu":
        parser.error("--recipe is for --preset h200")
    options.regime = options.regime or (regimes[:1] if options.recipe else regimes)
    return options


def compare(
    regime_name: str, setup: Setup, options: argparse.Namespace, peak: float | None
) -> tuple[list[Row], dict[str, float]]:
    """Rows of one regime, and its largest |dlogp|; nothing that is returned holds the model."""
    timings = measure(regime_name, setup, options.variant, options.repeats)
    rows = summarise(regime_name, setup, timings, peak)
    if (ours := timings.get("shared-prefix")) and not ours.note:
        full = time_full_step(ours.work, options.repeats)
        if not full.note:
            rows[-1]["full_step_ms_per_prompt"] = 1e3 * statistics.median(full.seconds[1:])
    return rows, differences(setup, timings)


def measure(
    regime_name: str, setup: Setup, variants: Sequence[str], repeats: int
) -> dict[str, Timing]:
    """A warm-up of each variant, then `repeats` interleaved ones."""
    timings = {}
    for name in (name for name in VARIANTS if name in variants):
        if name == "trl" and setup.regime.num_samples != 2:
            continue
        try:
            timings[name] = Timing(VARIANTS[name](setup))
        except ImportError as error:
            print(f"{regime_name}: {name} is left out: {error}")
    for repeat in range(-1, repeats):
        what = f"repeat {repeat + 1} of {repeats}" if repeat >= 0 else "warm-up"
        print(f"{regime_name}: {what}", file=sys.stderr, flush=True)
        for timing in timings.values():
            if repeat == 0:
                timing.seconds, timing.busy = [], []
            if not timing.note:
                run(timing)
    return timings


def run(timing: Timing) -> None:
    """Run and time one step; out of memory ends the variant, not the benchmark."""
    work = timing.work
    on_cuda = work.rows.input_ids.is_cuda
    with work.settings():
        work.model.zero_grad()
        if on_cuda:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start, busy = time.perf_counter(), time.process_time()
        try:
            timing.logps = work.step()
        except torch.OutOfMemoryError:
            timing.note = OUT_OF_MEMORY
        if on_cuda:
            torch.cuda.synchronize()
            timing.peak_gib = torch.cuda.max_memory_allocated() / 2**30
        timing.seconds.append((time.perf_counter() - start) / work.num_lists)
        timing.busy.append((time.process_time() - busy) / work.num_lists)
        work.model.zero_grad()
    if timing.note:
        torch.cuda.empty_cache()


def time_full_step(work: Work, repeats: int) -> Timing:
    """A warm-up and `repeats` steps with the optimiser; its rate is 0, so that nothing moves."""
    optimizer = MasterAdamW([p for p in work.model.parameters() if p.requires_grad], lr=0.0)

    def step() -> torch.Tensor:
        logps = work.step()
        optimizer.step()
        return logps

    timing = Timing(replace(work, step=step))
    for _ in range(repeats + 1):
        run(timing)
    return timing


@torch.no_grad()
def differences(setup: Setup, timings: dict[str, Timing]) -> dict[str, float]:
    """Largest |dlogp| in nats: ours against full rows as timed, and full rows of two paddings."""
    ours, full = (timings.get(name) for name in ("shared-prefix", "concatenated-same-settings"))
    if not (ours and full) or ours.note or full.note:
        return {}
    # Kernels for yet another length would take long to compile.
    with torch.compiler.set_stance("force_eager"):
        plain, padded = (
            full_row_logps(setup.vlm, *full_rows(setup.vlm, setup.lists[:1], padding))
            for padding in (0, PADDING)
        )
    num = len(full.logps)
    return {
        "shared-prefix": float((ours.logps[:num] - full.logps).abs().max()),
        "two paddings": float((plain - padded).abs().max()),
    }


def summarise(
    regime_name: str, setup: Setup, timings: dict[str, Timing], peak: float | None
) -> list[Row]:
    """A row for each variant; figures that need a variant which was not run are absent."""
    bound = setup.regime.token_bound
    median = {n: statistics.median(t.seconds) for n, t in timings.items() if not t.note}
    flops_of = FlopCounter(setup.vlm.model)
    rows: list[Row] = []
    for name, timing in timings.items():
        row: Row = {
            "regime": regime_name,
            "variant": name,
            "ms_per_prompt": None,
            "peak_gib": timing.peak_gib,
            "token_bound": bound,
            "note": timing.note,
        }
        rows.append(row)
        if timing.note:
            continue
        seconds, num_lists = median[name], timing.work.num_lists
        row["ms_per_prompt"] = 1e3 * seconds
        row["ms_range"] = [1e3 * min(timing.seconds), 1e3 * max(timing.seconds)]
        row["processor_ms_per_prompt"] = 1e3 * statistics.median(timing.busy)
        row["lists_per_step"] = num_lists
        row["tokens_per_s"] = timing.work.rows.num_packed / num_lists / seconds
        if "concatenated" in median:
            row["faster_than_concatenated"] = median["concatenated"] / seconds
        if name == "shared-prefix" and "concatenated-same-settings" in median:
            row["share_of_token_bound"] = median["concatenated-same-settings"] / seconds / bound
        if peak:
            flops = flops_of.count(timing.work.rows) / num_lists
            row["share_of_matmul_rate"] = flops / seconds / peak
    return rows


COLUMNS = {
    "ms/prompt": ("ms_per_prompt", ",.1f"),
    "with AdamW": ("full_step_ms_per_prompt", ",.1f"),
    "tokens/s": ("tokens_per_s", ",.0f"),
    "peak GiB": ("peak_gib", ".1f"),
    "times faster": ("faster_than_concatenated", ".1f"),
    "of bound": ("share_of_token_bound", ".2f"),
    "of matmul": ("share_of_matmul_rate", ".2f"),
}


def print_table(regime_name: str, regime: Regime, rows: list[Row]) -> None:
    print(
        f"\n{regime_name}: prefix {regime.prefix_tokens} ({regime.image_tokens} image), "
        f"{regime.num_samples} answers of {regime.answer_tokens}, "
        f"token bound {regime.token_bound:.1f}"
    )
    print(f"{'':27s}" + "".join(f"{title:>13s}" for title in COLUMNS))
    for row in rows:
        cells = [(row.get(key), form) for key, form in COLUMNS.values()]
        texts = ["-" if value is None else format(value, form) for value, form in cells]
        print(f"{row['variant']:27s}{''.join(f'{t:>13s}' for t in texts)}  {row['note']}".rstrip())
    sys.stdout.flush()


def describe(
    options: argparse.Namespace, regimes: dict[str, Regime], dtype: torch.dtype, peak: float | None
) -> Row:
    on_cuda = peak is not None
    return {
        "preset": options.preset,
        "machine": torch.cuda.get_device_name() if on_cuda else platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "repeats": options.repeats,
        "dtype": str(dtype),
        "peak_gib": "torch.cuda.max_memory_allocated per step"
        if on_cuda
        else "null: the variants share one process, so a variant has no peak of its own",
        "matmul_tflops": peak / 1e12 if on_cuda else None,
        "settings": {name: asdict(regime) for name, regime in regimes.items()},
        "max_abs_dlogp_nats": {},
    }


def keep_memory() -> None:
    """Let glibc keep freed memory, as torch does on CUDA.

    Otherwise it returns the large tensors of full rows to the system and requests them again, and
    half of their time goes into empty pages: the comparison would measure page faults.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_trim_threshold, -1)
        libc.mallopt(m_mmap_max, 0)


if __name__ == "__main__":
    keep_memory()
    main()
