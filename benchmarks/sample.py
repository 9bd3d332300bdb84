"""Time the sampling of 20 completions per prompt, ours against others, side by side.

    python benchmarks/sample.py --engine transformers --json sample.json
    python benchmarks/sample.py --engine vllm                        (needs vLLM; one engine)
    python benchmarks/sample.py --engine determinism                 (batches of many sizes)
    python benchmarks/sample.py --preset h200 --engine ...           (7B shapes, bf16, CUDA)

transformers, from encoded prompts to token ids:
  shared-prefix          ours: `sample_lists`, B prompts per batch
  generate               model.generate(do_sample, num_return_sequences=20), one prompt per call
  generate-batch         `generate` with B prompts per call
  generate-copied-cache  prompts read once, their cache copied 20 times, then `generate`
vllm, with all requests added at once, from images to completions:
  backend                ours: `VllmBackend.sample`, from encoded image files
  bare                   LLM.generate on loaded images, with the same `LLM` object
  bare-without-text      LLM.generate with detokenize=False
determinism: which completions change with the number of prompts per batch.

The repeats of all ways are interleaved, so that a busy machine slows all of them equally; medians
are reported. No token ends an answer, so all ways draw the same number of tokens, which is checked.
Models have random weights (no download), except the testbed's, which are shipped. vLLM on a CPU
needs HF_HUB_OFFLINE=1 and, if torchvision was built for CUDA,
PYTHONPATH=tests/with_vllm/torchvision_on_cpu.
"""

import argparse
import gc
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # download nothing

import transformers
from figures import OUT_OF_MEMORY, save
from sample_determinism import compare_batch_sizes
from sample_ways import (
    LIBRARY,
    OURS,
    Case,
    EngineCase,
    Scene,
    Tokens,
    peak_mib,
    set_scene,
    ways_for,
)
from train_step import LLAVA_7B, PRESETS, SMALLER, keep_memory
from train_step_models import Shape

Row = dict[str, Any]
Report = Callable[[Row, list[Row]], None]  # more of the header, and the rows so far
ENGINES = ("transformers", "vllm", "determinism")
CPU, H200 = PRESETS["cpu"], PRESETS["h200"]
CASES: dict[str, dict[str, Case]] = {
    "cpu": {
        "llava15-grounding": Case(CPU["llava15-grounding"], 4, 26),
        "testbed": Case(None, 32, 24),
        "long-answers": Case(CPU["dense-ocr"], 4, 72),
    },
    "h200": {
        "llava15-grounding": Case(H200["llava15-grounding"], 8, 26),
        "testbed": Case(None, 32, 24),
        "long-answers": Case(H200["dense-ocr"], 2, 1000),
        "qwen25-vl-grounding": Case(H200["qwen25-vl-grounding"], 8, 26),
    },
    "dry": {"llava15-grounding": Case(PRESETS["dry"]["llava15-grounding"], 2, 5, 4)},
}
# One case per process: vLLM makes its own batches of completions, from all prompts of a round.
ENGINE_CASES: dict[str, dict[str, EngineCase]] = {
    "cpu": {
        "llava15-grounding": EngineCase(replace(SMALLER, layers=4), 32, 26),
        # The least work for the engine: 16 image tokens and 0.5 million weights.
        "tiny": EngineCase(Shape("llava", 128, 256, 2, 4, 4, 300, (32, 64, 2, 1), 56, 8), 128, 26),
    },
    "h200": {"llava15-grounding": EngineCase(LLAVA_7B, 256, 26)},
    "dry": {},
}
DETERMINISM_PROMPTS = 256


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    on_cuda = options.preset == "h200"
    if on_cuda and not torch.cuda.is_available():
        raise SystemExit("--preset h200 needs a CUDA device")
    device = torch.device("cuda" if on_cuda else "cpu")
    dtype = torch.bfloat16 if on_cuda else torch.float32
    engine = {"transformers": time_ways, "vllm": time_engine, "determinism": compare}
    header = describe(options, dtype)

    def report(more: Row, rows: list[Row]) -> None:
        save(options.json, {"header": header | more, "rows": rows})

    report(*engine[options.engine](options, dtype, device, report))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=ENGINES, default="transformers")
    parser.add_argument("--preset", choices=list(CASES), default="cpu")
    parser.add_argument(
        "--case", nargs="+", help="default: all cases of the preset; with vllm: the first"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--prompts", type=int, help="prompts per round (vllm) or in total (determinism)"
    )
    parser.add_argument(
        "--model", type=Path, help="directory of the model (vllm; default: random weights)"
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    is_vllm = options.engine == "vllm"
    known = list((ENGINE_CASES if is_vllm else CASES)[options.preset])
    options.case = options.case or (known[:1] if is_vllm else known)
    if unknown := set(options.case) - set(known):
        parser.error(f"no such case: {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    if is_vllm and len(options.case) > 1:
        parser.error("a process has one engine: give one --case")
    return options


def time_ways(
    options: argparse.Namespace,
    dtype: torch.dtype,
    device: torch.device,
    report: Report = lambda header, rows: None,
) -> tuple[Row, list[Row]]:
    """Header and rows of the JSON for the transformers engine; `report` gets them as they come."""
    rows: list[Row] = []
    cases = {name: CASES[options.preset][name] for name in options.case}
    header = {"cases": {name: asdict(case) for name, case in cases.items()}}
    for name, case in cases.items():
        scene = set_scene(case, dtype, device)
        done = list(rows)
        rows = done + time_case(
            name, scene, options, lambda found, done=done: report(header, done + found)
        )
        report(header, rows)
        del scene
        gc.collect()
    return header, rows


def time_case(
    name: str,
    scene: Scene,
    options: argparse.Namespace,
    report: Callable[[list[Row]], None],
) -> list[Row]:
    """The rows of one case; `report` gets them after each round."""
    case = scene.case
    ways = {way: partial(draw, scene) for way, draw in ways_for(scene).items()}

    def rows_of(seconds: dict[str, list[float]]) -> list[Row]:
        found = summarise(seconds, case.prompts, tokens_of(case), LIBRARY, OURS)
        return [row | {"case": name, "prefix_tokens": scene.prefix_tokens} for row in found]

    rows = rows_of(
        interleave(
            name,
            ways,
            tokens_of(case),
            options.repeats,
            lambda seconds: report(rows_of(seconds)),
        )
    )
    if not options.no_memory:
        for row in rows:
            row["peak_mib"] = None if row["note"] else peak_mib(scene, row["way"])
    print_table(
        f"{name}: prefix {scene.prefix_tokens}, {case.num_samples} answers of "
        f"{case.answer_tokens}, {case.prompts} prompts per batch",
        rows,
    )
    return rows


def tokens_of(case: Case | EngineCase) -> int:
    return case.prompts * case.num_samples * case.answer_tokens


def time_engine(
    options: argparse.Namespace, dtype: torch.dtype, device: torch.device, report: Report
) -> tuple[Row, list[Row]]:
    """Header and rows of the JSON for vLLM."""
    import sample_vllm

    (name,) = options.case
    case = ENGINE_CASES[options.preset][name]
    case = replace(case, prompts=options.prompts or case.prompts)
    text = sample_vllm.question if options.model else sample_vllm.random_words(case.shape.vocab)
    prompts = sample_vllm.make_rows(case.prompts, text)
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or sample_vllm.save_hub_model(
            case.shape, Path(folder) / "model", dtype, device
        )
        gc.collect()
        torch.cuda.empty_cache()
        backend = sample_vllm.open_backend(model, Path(folder), case, dtype)
        ways = sample_vllm.ways(backend, prompts)
        seconds = interleave(f"vllm {name}", ways, tokens_of(case), options.repeats)
        settings = sample_vllm.engine_settings(backend)
        prefix = sample_vllm.prefix_tokens(backend, prompts[0])
        backend.close()
    rows = summarise(
        seconds, case.prompts, tokens_of(case), ("bare", "bare-without-text"), "backend"
    )
    for row in rows:
        row |= {"case": name, "prefix_tokens": prefix}
    print_table(
        f"vllm {name}: prefix {prefix}, {case.num_samples} answers of {case.answer_tokens}, "
        f"{case.prompts} prompts per round",
        rows,
    )
    model_name = {"model": str(options.model)} if options.model else {}
    return {"cases": {name: asdict(case) | model_name}, "engine": settings}, rows


def compare(
    options: argparse.Namespace, dtype: torch.dtype, device: torch.device, report: Report
) -> tuple[Row, list[Row]]:
    """Header and rows of the JSON that compares batch sizes; ignores `dtype`, it compares both."""
    prompts = options.prompts or DETERMINISM_PROMPTS
    rows = compare_batch_sizes(prompts, (torch.float32, torch.bfloat16), device)
    print(
        f"{'':10s}{'batches':>10s}{'completions':>13s}{'differ':>8s}{'share':>10s}{'|dlogp|':>11s}"
    )
    for row in rows:
        batches = " and ".join(map(str, row["batch_sizes"]))
        print(
            f"{row['dtype']:10s}{batches:>10s}{row['completions']:13,d}{row['differ']:8,d}"
            f"{row['share']:10.3%}{row['max_abs_dlogprob_nats']:11.1e}"
        )
    return {"cases": {"testbed": {"prompts": prompts}}}, rows


def interleave(
    what: str,
    ways: Mapping[str, Callable[[], Tokens]],
    tokens: int,
    repeats: int,
    report: Callable[[dict[str, list[float]]], None] = lambda seconds: None,
) -> dict[str, list[float]]:
    """Seconds of `repeats` rounds of every way, after a warm-up; all must draw `tokens` tokens.

    A way that runs out of memory has no seconds. `report` follows each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    too_large: set[str] = set()
    for repeat in range(-1, repeats):
        name = f"repeat {repeat + 1} of {repeats}" if repeat >= 0 else "warm-up"
        print(f"{what}: {name}", file=sys.stderr, flush=True)
        for way, draw in ways.items():
            if way in too_large:
                continue
            start = time.perf_counter()
            try:
                drawn = sum(map(len, draw()))
            except torch.OutOfMemoryError:
                too_large.add(way)
                seconds[way] = []
                drawn = None
            if drawn is None:  # behind the exception, whose frames hold tensors
                torch.cuda.empty_cache()
                continue
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken = time.perf_counter() - start
            if drawn != tokens:
                raise SystemExit(f"{way} drew {drawn} tokens instead of {tokens}")
            if repeat >= 0:
                seconds[way].append(taken)
        if repeat >= 0:
            report(seconds)
    return seconds


def summarise(
    seconds: Mapping[str, list[float]],
    prompts: int,
    tokens: int,
    opponents: Sequence[str],
    ours: str,
) -> list[Row]:
    """One row per way; `faster` is the speed relative to the fastest opponent that had room."""
    median = {way: statistics.median(taken) for way, taken in seconds.items() if taken}
    best = min((median[way] for way in opponents if way in median), default=None)
    rows: list[Row] = []
    for way, taken in seconds.items():
        row: Row = {"way": way, "ours": way == ours, "note": "" if taken else OUT_OF_MEMORY}
        rows.append(row)
        if taken:
            row |= {
                "ms_per_prompt": 1e3 * median[way] / prompts,
                "ms_range": [1e3 * min(taken) / prompts, 1e3 * max(taken) / prompts],
                "tokens_per_s": tokens / median[way],
                "faster": best and best / median[way],
                "rounds": len(taken),
            }
    return rows


def print_table(title: str, rows: Sequence[Row]) -> None:
    columns = {
        "ms/prompt": ("ms_per_prompt", ",.1f"),
        "tokens/s": ("tokens_per_s", ",.0f"),
        "ratio": ("faster", ".2f"),
        "peak MiB": ("peak_mib", ",.0f"),
    }
    print(f"\n{title}\n{'':23s}" + "".join(f"{name:>11s}" for name in columns))
    for row in rows:
        cells = [(row.get(key), form) for key, form in columns.values()]
        texts = ["-" if value is None else format(value, form) for value, form in cells]
        line = f"{row['way']:23s}" + "".join(f"{text:>11s}" for text in texts)
        print(f"{line}  {row['note']}".rstrip(), flush=True)


def describe(options: argparse.Namespace, dtype: torch.dtype) -> Row:
    on_cuda = options.preset == "h200"
    return {
        "engine": options.engine,
        "preset": options.preset,
        "machine": torch.cuda.get_device_name() if on_cuda else platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "repeats": options.repeats,
        "dtype": str(dtype),
        "peak_mib": "per round, without the model: torch.cuda.max_memory_allocated; "
        "on the CPU the resident peak of a separate process",
    }


if __name__ == "__main__":
    keep_memory()
    main()
