"""What each lever of `train.levers` saves on a card, one by one and together; ms per prompt.

    python benchmarks/gpu/levers.py --seconds 110 --json levers.json
    python benchmarks/gpu/levers.py --setting "all levers" flash-parts (beside "as it is")
    python benchmarks/gpu/levers.py --preset dry                       (tiny shapes on the CPU)

A step is forward, loss and backward of 8 lists of the LLaVA-1.5 grounding shape, on random weights.
Every setting has a model of its own with the same weights, so log-probabilities show whether a
lever changes results. It stops with the setting after which --seconds are over, and says which are
left; the JSON has what was measured so far. Optimiser and profile are taken at the first setting.
"""

import argparse
import gc
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if importlib.util.find_spec("perpo_pipeline") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from figures import OUT_OF_MEMORY, save
from train_step import PRESETS
from train_step_models import build_vlm, random_lists, settings_of
from train_step_variants import backward

from perpo_pipeline.config.levers import LEVERS
from perpo_pipeline.errors import PerpoError
from perpo_pipeline.train.master_weights import MasterAdamW
from perpo_pipeline.train.shared_prefix import CompletionList, RowLengths, pack_lists, packed_logps
from perpo_pipeline.vlm.models import Vlm

REGIME = "llava15-grounding"
REPEATS = 6
PROFILED_ROWS = 45
Row = dict[str, Any]
Setting = tuple[str, list[str], RowLengths]  # name, levers, row lengths
EXCLUDED = {"flex-autotune"}  # from all together: it is instead of flash-parts
ONLY_ON_CUDA = {"flex-autotune", "compiled-tower"}  # the latter compiles, minutes on a CPU


def settings(preset: str) -> list[Setting]:
    """What the defaults give, all levers, each one by its expected gain, and bucketed rows."""
    usable = [name for name in LEVERS if preset != "dry" or name not in ONLY_ON_CUDA]
    by_gain = sorted(usable, key=lambda name: -max(LEVERS[name].saves_ms))
    return [
        ("as it is", [], "any"),
        ("all levers", [name for name in by_gain if name not in EXCLUDED], "any"),
        *((name, [name], "any") for name in by_gain),
        ("as it is, bucketed rows", [], "bucketed"),
    ]


def choose(options: argparse.Namespace) -> list[Setting]:
    """All settings, or the first one, with which the others are compared, and those named."""
    known = settings(options.preset)
    names = [name for name, _, _ in known]
    if unknown := sorted(set(options.setting) - set(names)):
        sys.exit(f"--setting {unknown[0]}: no such setting; choose from {', '.join(names)}")
    return [one for one in known if not options.setting or one[0] in {names[0], *options.setting}]


@dataclass(frozen=True)
class Scene:
    """A model on a device, with the lists of one step."""

    vlm: Vlm
    lists: Sequence[CompletionList]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.preset == "h200" and not torch.cuda.is_available():
        sys.exit("--preset h200 needs a CUDA device")
    end = time.monotonic() + options.seconds
    on_cuda, chosen = options.preset == "h200", choose(options)
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "machine": torch.cuda.get_device_name() if on_cuda else "cpu",
        "regime": REGIME,
        "rows": [],
        "left": [name for name, _, _ in chosen],
    }
    truth = scene = None
    for number, (name, levers, row_lengths) in enumerate(chosen):
        if time.monotonic() > end:
            break
        row = {"setting": name, "levers": levers, "row_lengths": row_lengths}
        try:
            scene = set_scene(options.preset, row_lengths, levers)
            found, logps = time_step(scene, row_lengths)
            truth = logps if truth is None else truth
            row |= found | {"max_abs_dlogp_nats": float((logps - truth).abs().max())}
            if number == 0:
                result["optimiser_ms_per_step"] = time_optimiser(scene)
                profile(scene, row_lengths, options.profile)
        except torch.OutOfMemoryError:
            row["note"] = OUT_OF_MEMORY
        except PerpoError as error:  # a lever that this card or model cannot use
            row["note"] = error.what
        scene = None  # the next model needs its memory
        result["rows"].append(row)
        result["left"].remove(name)
        save(options.json, result)
        print(line_of(row), flush=True)
        gc.collect()
        torch.cuda.empty_cache()
        torch.compiler.reset()
    if result["left"]:
        print(f"no time left for: {', '.join(result['left'])}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--preset", choices=("h200", "dry"), default="h200")
    parser.add_argument("--seconds", type=float, default=600, help="begin no setting after these")
    parser.add_argument("--setting", nargs="+", default=[], help="only these, and the first one")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--profile", type=Path, help="write the kernels of a step here (CUDA)")
    return parser.parse_args(arguments)


def set_scene(preset: str, row_lengths: str, levers: Sequence[str]) -> Scene:
    on_cuda = preset == "h200"
    regime = PRESETS[preset][REGIME]
    device = torch.device("cuda" if on_cuda else "cpu")
    dtype = torch.bfloat16 if on_cuda else torch.float32
    vlm, _ = build_vlm(regime.shape, dtype, device, settings_of(row_lengths, levers))
    return Scene(vlm, random_lists(vlm, regime, regime.lists))


def time_step(scene: Scene, row_lengths: RowLengths) -> tuple[Row, torch.Tensor]:
    """The figures of a step, and its log-probabilities; the first step of another length, too."""
    vlm, lists = scene.vlm, scene.lists
    batch = pack_lists(vlm, lists, row_lengths=row_lengths).to(vlm.device)
    fewer = lists[: max(1, len(lists) - 1)]
    other = pack_lists(vlm, fewer, row_lengths=row_lengths).to(vlm.device)
    kept: list[torch.Tensor] = []

    def step() -> None:
        vlm.model.zero_grad()
        kept[:] = [backward(packed_logps(vlm.model, batch))]

    if vlm.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first, taken = timed(step, vlm.device, REPEATS)
    row: Row = {
        "ms_per_prompt": 1e3 * statistics.median(taken) / len(lists),
        "ms_range": [1e3 * min(taken) / len(lists), 1e3 * max(taken) / len(lists)],
        "first_step_s": first,
        "row_tokens": int(batch.input_ids.shape[1]),
    }
    if vlm.device.type == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    logps = kept[0].cpu()
    batch = other
    row["first_step_of_another_length_s"], _ = timed(step, vlm.device, 0)
    return row, logps


def time_optimiser(scene: Scene) -> Row:
    """Milliseconds of clipping and of MasterAdamW, with the gradients of the last step."""
    trained = [p for p in scene.vlm.model.parameters() if p.requires_grad]
    optimizer = MasterAdamW(trained, lr=0.0)
    device = scene.vlm.device
    _, clip = timed(lambda: torch.nn.utils.clip_grad_norm_(trained, 1e9), device, REPEATS)
    _, adamw = timed(optimizer.step, device, REPEATS)
    return {
        "clip_grad_norm": 1e3 * statistics.median(clip),
        "master_adamw": 1e3 * statistics.median(adamw),
    }


def profile(scene: Scene, row_lengths: RowLengths, path: Path | None) -> None:
    """Write the kernels of one step, by their time on the device."""
    vlm = scene.vlm
    if path is None or vlm.device.type != "cuda":
        return
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorded

    batch = pack_lists(vlm, scene.lists, row_lengths=row_lengths).to(vlm.device)
    with recorded(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        backward(packed_logps(vlm.model, batch))
        torch.cuda.synchronize()
    path.write_text(
        found.key_averages().table(
            sort_by="self_cuda_time_total",
            row_limit=PROFILED_ROWS,
            max_name_column_width=70,
        )
    )


def timed(
    work: Callable[[], object], device: torch.device, repeats: int
) -> tuple[float, list[float]]:
    """Seconds of the first call, and of `repeats` more."""
    wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else int
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        wait()
        taken.append(time.perf_counter() - start)
    return taken[0], taken[1:]


def line_of(row: Row) -> str:
    if "note" in row:
        return f"{row['setting']:28s} {row['note']}"
    peak = f"{row['peak_gib']:.1f} GiB" if "peak_gib" in row else "-"
    return (
        f"{row['setting']:28s} {row['ms_per_prompt']:8.2f} ms/prompt  first step "
        f"{row['first_step_s']:5.1f} s, of another length "
        f"{row['first_step_of_another_length_s']:5.1f} s  peak {peak}  dlogp "
        f"{row['max_abs_dlogp_nats']:.2g}"
    )


if __name__ == "__main__":
    main()
