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
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

if importlib.util.find_spec("perpo_pipeline") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded, and TRL would report its use

import transformers
from figures import OUT_OF_MEMORY, save
from train_step_models import Regime, Shape, build_vlm, random_lists, settings_of
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
TINY = Shape("llava", 64, 96, 2, 4, 2, 300, (32, 64, 2, 2), 28, rank=4)
TINY_NEXT = replace(TINY, model_type="llava_next")
# The embedded runs' model, but with four decoder layers instead of five, as the recorded figures
# have. 144 image tokens, as its pages of 96 px in patches of 8 px have.
EMBEDDED = Shape("llava", 192, 384, 4, 6, 6, 704, (128, 384, 4, 4), 168, rank=64)
SMALL_QWEN = replace(SMALLER, model_type="qwen2_5_vl", kv_heads=2)

# On the CPU the last three are scaled down: smaller images, and answers shorter in proportion.
PRESETS: dict[str, dict[str, Regime]] = {
    "cpu": {
        "llava15-grounding": Regime(SMALL, (336, 336), 576, 600, 26, 20, lists=1),
        "llava15-grounding-n2": Regime(SMALL, (336, 336), 576, 600, 26, 2, lists=1),
        "llava-next-grounding": Regime(SMALL_NEXT, (168, 168), 192, 210, 3, 20, lists=1),
        "dense-ocr": Regime(SMALL_NEXT, (168, 168), 192, 210, 72, 20, lists=1, checkpointing=True),
        "embedded-pages": Regime(EMBEDDED, (168, 168), 144, 160, 65, 20, lists=4),
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
    # A rehearsal of the script; its figures mean nothing.
    "dry": {
        "llava15-grounding": Regime(TINY, (28, 28), 4, 20, 5, 4, lists=2),
        "llava15-grounding-n2": Regime(TINY, (28, 28), 4, 20, 5, 2, lists=2),
        "llava-next-grounding": Regime(TINY_NEXT, (56, 56), 24, 40, 5, 4, lists=2),
        "dense-ocr": Regime(TINY_NEXT, (56, 56), 24, 40, 9, 4, lists=1, checkpointing=True),
    },
}
PADDING = 7  # tokens: bf16 must be judged against what other padding changes, not against zero
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
        settings = settings_of(options.row_lengths, options.lever)
        for name, regime in regimes.items():
            vlm, _ = build_vlm(regime.shape, dtype, device, settings)
            print(f"{name}: {run_recipe(vlm, regime)}")
        return
    # Every variant has one length, so each gets kernels for that length, not for dynamic ones.
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        compare_regimes(regimes, options, device, dtype)


def compare_regimes(
    regimes: dict[str, Regime],
    options: argparse.Namespace,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """What is in the JSON, which is written anew after every round of all variants.

    Regimes of one shape that follow each other share the model.
    """
    peak = measured_peak(device, dtype) if device.type == "cuda" else None
    header, rows = describe(options, regimes, dtype, peak), []
    result = {"header": header, "rows": rows}
    settings = settings_of(options.row_lengths, options.lever)
    model = shape = None
    for name, regime in regimes.items():
        done = len(rows)

        def report(found: list[Row], done: int = done) -> None:
            rows[done:] = found
            save(options.json, result)

        try:
            if regime.shape != shape:
                model = setup = None  # the last one goes before the next is built
                gc.collect()
                torch.cuda.empty_cache()
                torch.compiler.reset()
                model, shape = build_vlm(regime.shape, dtype, device, settings), regime.shape
            lists = random_lists(model[0], regime, max(regime.lists, regime.full_lists))
            setup = Setup(*model, regime, lists, options.row_lengths)
            found, header["max_abs_dlogp_nats"][name] = compare(name, setup, options, peak, report)
        except torch.OutOfMemoryError:  # of the model itself, or beside its steps
            found = rows[done:] or [empty_row(name, regime, way) for way in options.variant]
            for row in found:
                row["note"] = row["note"] or f"{OUT_OF_MEMORY} beside the steps"
            model = setup = shape = None
        report(found)
        print_table(name, regime, found)
    return result


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = list(PRESETS["cpu"])
    parser.add_argument("--preset", choices=list(PRESETS), default="cpu")
    parser.add_argument("--regime", nargs="+", choices=known, help="default: all")
    parser.add_argument("--variant", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="processor threads (default: torch's)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--lever", nargs="+", default=[], help="entries of train.levers, for ours")
    parser.add_argument("--row-lengths", choices=("any", "bucketed"), default="any")
    parser.add_argument("--recipe", action="store_true", help="time a whole run over 3,000 lists")
    options = parser.parse_args(arguments)
    if options.recipe and options.preset != "h200":
        parser.error("--recipe is for --preset h200")
    regimes = list(PRESETS[options.preset])
    options.regime = options.regime or (regimes[:1] if options.recipe else regimes)
    if unknown := set(options.regime) - set(regimes):
        parser.error(f"--preset {options.preset} has no {', '.join(sorted(unknown))}")
    return options


def compare(
    regime_name: str,
    setup: Setup,
    options: argparse.Namespace,
    peak: float | None,
    report: Callable[[list[Row]], None],
) -> tuple[list[Row], dict[str, float]]:
    """Rows of one regime, and its largest |dlogp|; nothing that is returned holds the model.

    `report` gets the rows after each round.
    """

    def rows_of(timings: dict[str, Timing]) -> list[Row]:
        return summarise(regime_name, setup, timings, peak)

    timings = measure(
        regime_name, setup, options.variant, options.repeats, lambda found: report(rows_of(found))
    )
    rows = rows_of(timings)
    if (ours := timings.get("shared-prefix")) and not ours.note:
        full = time_full_step(ours.work, options.repeats)
        if not full.note:
            rows[-1]["full_step_ms_per_prompt"] = 1e3 * statistics.median(full.seconds[1:])
    report(rows)
    return rows, differences(setup, timings)


def measure(
    regime_name: str,
    setup: Setup,
    variants: Sequence[str],
    repeats: int,
    report: Callable[[dict[str, Timing]], None] = lambda timings: None,
) -> dict[str, Timing]:
    """A warm-up of each variant, then `repeats` interleaved ones; `report` follows each round."""
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
        if repeat >= 0:
            report(timings)
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
    optimizer = None

    def step() -> torch.Tensor:
        nonlocal optimizer
        if optimizer is None:  # in the warm-up, where running out of memory is caught
            optimizer = MasterAdamW([p for p in work.model.parameters() if p.requires_grad], lr=0.0)
        logps = work.step()
        optimizer.step()
        return logps

    timing = Timing(replace(work, step=step))
    for _ in range(repeats + 1):
        if not timing.note:
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
    median = {
        n: statistics.median(t.seconds) for n, t in timings.items() if t.seconds and not t.note
    }
    flops_of = FlopCounter(setup.vlm.model)
    rows: list[Row] = []
    for name, timing in timings.items():
        row = empty_row(regime_name, setup.regime, name)
        row |= {"peak_gib": timing.peak_gib, "note": timing.note}
        rows.append(row)
        if timing.note:
            continue
        seconds, num_lists = median[name], timing.work.num_lists
        row["ms_per_prompt"] = 1e3 * seconds
        row["rounds"] = len(timing.seconds)
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


def empty_row(regime_name: str, regime: Regime, variant: str) -> Row:
    """A row without figures."""
    return {
        "regime": regime_name,
        "variant": variant,
        "ms_per_prompt": None,
        "peak_gib": None,
        "token_bound": regime.token_bound,
        "note": "",
    }


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
        "levers": options.lever,
        "row_lengths": options.row_lengths,
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
