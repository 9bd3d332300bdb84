"""Time one preference-training step several ways, side by side, on random weights.

    python benchmarks/train_step.py --preset cpu --json train_step.json
    python benchmarks/train_step.py --preset h200 --json train_step.json    (7B shapes, bf16, CUDA)
    python benchmarks/train_step.py --preset h200 --recipe     (a whole run over 3,000 lists, CUDA)

shared-prefix               ours: the prefix is read once for all completions of a list
concatenated-same-settings  one full row a completion, everything else as ours
concatenated                as the PerPO authors' code does it
trl                         TRL's DPOTrainer as documented for VLMs (pairs; needs trl, datasets)

A step is forward, loss and backward on LoRA weights, all on the same lists and weights; the
repeats of the ways are interleaved, so that a busy machine slows all alike, and medians are
reported. It needs torch, transformers, peft and a checkout. What is simplified: lists of one
regime are equally long, and batches are prepared before the clock starts.
"""

import argparse
import contextlib
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

from perpo_pipeline.models import Vlm
from perpo_pipeline.train.master_weights import MasterAdamW
from perpo_pipeline.train.throughput import FlopCounter, measured_peak

LLAVA_7B = Shape(
    "llava", 4096, 11008, 32, 32, 32, vocab=32064, tower=(1024, 4096, 24, 16), tile_px=336, rank=128
)
QWEN_7B = Shape(
    "qwen2_5_vl", 3584, 18944, 28, 28, 4, vocab=152064, tower=(1280, 3420, 32, 16), tile_px=0, rank=128
)  # fmt: skip
LLAVA_NEXT_7B = replace(LLAVA_7B, model_type="llava_next")
SMALL = Shape(
    "llava", 768, 2048, 2, 12, 12, vocab=2048, tower=(128, 512, 2, 2), tile_px=336, rank=32
)
SMALLER = replace(SMALL, hidden=512, intermediate=1408, heads=8, kv_heads=8)
SMALL_NEXT = replace(SMALLER, model_type="llava_next", tile_px=84)
SMALL_QWEN = replace(SMALLER, model_type="qwen2_5_vl", kv_heads=2)

# Beside the first regime, those of the CPU are scaled down in about one proportion.
PRESETS: dict[str, dict[str, Regime]] = {
    "cpu": {
        "llava15-grounding": Regime(SMALL, (336, 336), 576, 600, 26, 20, lists=1),
        "llava15-grounding-n2": Regime(SMALL, (336, 336), 576, 600, 26, 2, lists=2, full_lists=2),
        "llava-next-grounding": Regime(SMALL_NEXT, (168, 168), 192, 210, 3, 20, lists=2),
        "dense-ocr": Regime(SMALL_NEXT, (168, 168), 192, 210, 72, 20, lists=1, checkpointing=True),
        "qwen25-vl-grounding": Regime(SMALL_QWEN, (392, 392), 196, 230, 13, 20, lists=2),
    },
    "h200": {
        "llava15-grounding": Regime(LLAVA_7B, (336, 336), 576, 636, 26, 20),
        "llava15-grounding-n2": Regime(LLAVA_7B, (336, 336), 576, 636, 26, 2, full_lists=8),
        # 640 x 672 fills 46 of 48 rows of features: 576 + 46 * (48 + a new line) tokens.
        "llava-next-grounding": Regime(LLAVA_NEXT_7B, (640, 672), 2830, 2890, 26, 20, lists=3),
        "dense-ocr": Regime(
            LLAVA_NEXT_7B, (640, 672), 2830, 2920, 1000, 20, lists=1, checkpointing=True
        ),
        "qwen25-vl-grounding": Regime(QWEN_7B, (560, 560), 400, 460, 26, 20),
    },
}
PADDING = 7  # tokens: bf16 must be judged against what other padding changes, not against zero


@dataclass
class Timing:
    """What was measured of one variant; `work` is None once it cannot go on."""

    work: Work | None
    note: str = ""
    seconds: list[float] = field(default_factory=list)  # for one list
    peak_gib: float | None = None
    logps: torch.Tensor | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    on_cuda = options.preset != "cpu"
    if on_cuda and not torch.cuda.is_available():
        raise SystemExit(f"--preset {options.preset} and --recipe need a CUDA device")
    device = torch.device("cuda" if on_cuda else "cpu")
    dtype = torch.bfloat16 if on_cuda else torch.float32
    regimes = {name: PRESETS[options.preset][name] for name in options.regime}
    if options.recipe:
        for name, regime in regimes.items():
            vlm, _ = build_vlm(regime.shape, dtype, device)
            print(f"{name}: {run_recipe(vlm, regime)}", flush=True)
        return
    # Every way has one length: each gets kernels made for it, none those for any length.
    torch._dynamo.config.automatic_dynamic_shapes = False
    peak = measured_peak(device, dtype) if on_cuda else None
    rows, header = [], describe(options, regimes, device, dtype, peak)
    for name, setup in setups(regimes, dtype, device):
        timings = measure(name, setup, options.variant, options.repeats)
        header["max_abs_dlogp_nats"][name] = differences(setup, timings)
        found = summarise(name, setup, timings, peak)
        if (ours := timings.get("shared-prefix")) and ours.work:
            full = full_step_seconds(ours.work, setup.vlm, options.repeats)
            found[-1]["full_step_ms_per_prompt"] = 1e3 * full
        print_table(name, setup.regime, found)
        rows += found
    if options.json:
        text = json.dumps({"header": header, "rows": rows}, indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    regimes = list(PRESETS["cpu"])
    parser.add_argument("--preset", choices=list(PRESETS), default="cpu")
    parser.add_argument("--regime", nargs="+", choices=regimes, help="default: all")
    parser.add_argument("--variant", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="processor threads (default: torch's)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--recipe", action="store_true", help="time a whole run over 3,000 lists")
    options = parser.parse_args(arguments)
    if options.recipe and options.preset == "cpu":
        parser.error("--recipe is for --preset h200")
    options.regime = options.regime or (regimes[:1] if options.recipe else regimes)
    return options


def setups(regimes: dict[str, Regime], dtype: torch.dtype, device: torch.device) -> Any:
    """Each regime's model and lists; regimes of one shape that follow each other share the model."""
    shape = None
    for name, regime in regimes.items():
        if regime.shape != shape:
            vlm = twin = setup = None  # frees the last model before the next is built
            torch.compiler.reset()
            vlm, twin = build_vlm(regime.shape, dtype, device)
            shape = regime.shape
        lists = random_lists(vlm, regime, max(regime.lists, regime.full_lists))
        setup = Setup(vlm, twin, regime, lists)
        yield name, setup


def measure(
    regime_name: str, setup: Setup, variants: Sequence[str], repeats: int
) -> dict[str, Timing]:
    """A warm-up of each variant, then `repeats` interleaved ones; what runs out of memory drops out."""
    timings = {}
    for name in (name for name in VARIANTS if name in variants):
        if name == "trl" and setup.regime.num_samples != 2:
            continue
        try:
            timings[name] = warm_up(name, setup)
        except ImportError as error:
            print(f"{regime_name}: {name} is left out: {error}", flush=True)
    for repeat in range(repeats):
        print(f"{regime_name}: repeat {repeat + 1} of {repeats}", file=sys.stderr, flush=True)
        for timing in timings.values():
            if timing.work:
                run(timing)
    return timings


def warm_up(name: str, setup: Setup) -> Timing:
    """Prepare a variant and run it once; with gradient checkpointing if memory asks for it."""
    timing = Timing(None)
    for checkpointing in sorted({setup.regime.checkpointing, True}):
        regime = replace(setup.regime, checkpointing=checkpointing)
        with contextlib.suppress(torch.OutOfMemoryError):
            timing = Timing(VARIANTS[name](replace(setup, regime=regime)))
            run(timing)
            timing.seconds.clear()
        if timing.work:
            if checkpointing != setup.regime.checkpointing:
                timing.note = "gradient checkpointing, since memory runs out without it"
            return timing
        torch.cuda.empty_cache()
    return Timing(None, "out of memory")


def run(timing: Timing) -> None:
    """Run and time one step; out of memory ends the variant."""
    work = timing.work
    assert work is not None
    on_cuda = torch.cuda.is_available() and next(work.model.parameters()).is_cuda
    with work.settings():
        work.model.zero_grad()
        if on_cuda:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start = time.perf_counter()
        try:
            timing.logps = work.step()
        except torch.OutOfMemoryError:
            timing.work, timing.note = None, "out of memory"
        if on_cuda:
            torch.cuda.synchronize()
            timing.peak_gib = torch.cuda.max_memory_allocated() / 2**30
        timing.seconds.append((time.perf_counter() - start) / work.num_lists)
        work.model.zero_grad()


def full_step_seconds(work: Work, vlm: Vlm, repeats: int) -> float:
    """Median seconds a list with the optimiser; at a learning rate of 0, so that nothing moves."""
    trained = [p for p in work.model.parameters() if p.requires_grad]
    optimizer = MasterAdamW(trained, lr=0.0)

    def step() -> torch.Tensor:
        logps = work.step()
        optimizer.step()
        return logps

    timing = Timing(replace(work, step=step))
    for _ in range(repeats + 1):
        run(timing)
    return statistics.median(timing.seconds[1:])


@torch.no_grad()
def differences(setup: Setup, timings: dict[str, Timing]) -> dict[str, float]:
    """Largest |dlogp| in nats: ours against full rows as timed, and full rows of two paddings."""
    found = {}
    ours, full = (timings.get(name) for name in ("shared-prefix", "concatenated-same-settings"))
    if ours and full and ours.logps is not None and full.logps is not None:
        num = min(len(ours.logps), len(full.logps))
        found["shared-prefix"] = largest(ours.logps[:num] - full.logps[:num])
    if full and full.work:
        # Kernels for yet another length would take a minute to compile.
        with torch.compiler.set_stance("force_eager"):
            plain, padded = (
                full_row_logps(setup.vlm, *full_rows(setup.vlm, setup.lists[:1], padding))
                for padding in (0, PADDING)
            )
        found["two paddings"] = largest(plain - padded)
    return found


def largest(values: torch.Tensor) -> float:
    return float(values.abs().max())


def summarise(
    regime_name: str, setup: Setup, timings: dict[str, Timing], peak: float | None
) -> list[dict[str, Any]]:
    """A row for each variant; figures that need a variant which was not run are null."""
    bound = setup.regime.token_bound
    median = {n: statistics.median(t.seconds) for n, t in timings.items() if t.work}
    flops_of = FlopCounter(setup.vlm.model)
    rows = []
    for name, timing in timings.items():
        row: dict[str, Any] = {
            "regime": regime_name, "variant": name, "token_bound": bound, "note": timing.note,
            "ms_per_prompt": None, "peak_gib": timing.peak_gib,
        }  # fmt: skip
        rows.append(row)
        if not timing.work:
            continue
        seconds, batch = median[name], timing.work.rows
        row["ms_per_prompt"] = 1e3 * seconds
        row["ms_range"] = [1e3 * min(timing.seconds), 1e3 * max(timing.seconds)]
        row["lists_per_step"] = timing.work.num_lists
        row["tokens_per_s"] = batch.num_packed / timing.work.num_lists / seconds
        if "concatenated" in median:
            row["faster_than_concatenated"] = median["concatenated"] / seconds
        if name == "shared-prefix" and "concatenated-same-settings" in median:
            ratio = median["concatenated-same-settings"] / seconds
            row["share_of_token_bound"] = ratio / bound
        if peak:
            flops = flops_of.count(batch) / timing.work.num_lists
            row["share_of_matmul_rate"] = flops / seconds / peak
    return rows


def print_table(regime_name: str, regime: Regime, rows: list[dict[str, Any]]) -> None:
    columns = {
        "ms/prompt": ("ms_per_prompt", "{:.1f}"), "tokens/s": ("tokens_per_s", "{:,.0f}"),
        "peak GiB": ("peak_gib", "{:.1f}"), "x concatenated": ("faster_than_concatenated", "{:.1f}"),
        "of bound": ("share_of_token_bound", "{:.2f}"),
        "of matmul": ("share_of_matmul_rate", "{:.2f}"),
    }  # fmt: skip
    print(
        f"\n{regime_name}: prefix {regime.prefix_tokens} ({regime.image_tokens} image), answers "
        f"{regime.num_samples} x {regime.answer_tokens} tokens, token bound {regime.token_bound:.1f}"
    )
    print(f"{'':28s}" + "".join(f"{title:>16s}" for title in columns))
    for row in rows:
        values = [(row.get(key), form) for key, form in columns.values()]
        cells = ["-" if value is None else form.format(value) for value, form in values]
        print(f"{row['variant']:28s}" + "".join(f"{c:>16s}" for c in cells) + "  " + row["note"])
        if full := row.get("full_step_ms_per_prompt"):
            print(f"{'  with the optimiser':28s}{full:16.1f}")
    sys.stdout.flush()


def describe(
    options: argparse.Namespace, regimes: dict[str, Regime], device: torch.device,
    dtype: torch.dtype, peak: float | None,
) -> dict[str, Any]:  # fmt: skip
    on_cuda = device.type == "cuda"
    return {
        "preset": options.preset,
        "machine": torch.cuda.get_device_name() if on_cuda else platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "repeats": options.repeats,
        "dtype": str(dtype),
        "peak_gib": "torch.cuda.max_memory_allocated" if on_cuda
        else "null: peaks of one process cannot be told apart on the CPU",
        "matmul_tflops": peak / 1e12 if peak else None,
        "settings": {name: asdict(regime) for name, regime in regimes.items()},
        "max_abs_dlogp_nats": {},
    }  # fmt: skip


if __name__ == "__main__":
    main()
