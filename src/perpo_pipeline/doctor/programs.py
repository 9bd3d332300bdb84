"""Checks of what works beside torch on the cards: NCCL, vLLM, bitsandbytes."""

import importlib
import importlib.util
import sys
import tempfile
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

from perpo_pipeline import advice
from perpo_pipeline.doctor.finding import Finding, skipped, verdict

REDUCED_BYTES = {"cuda": 2**28, "cpu": 2**20}
REPEATS = 5
PROCESSES_ON_CPU = 2
PATIENCE = timedelta(seconds=60)
NEW_TOKENS, ANSWERS = 32, 4
NF4_SIZE = {"cuda": 4096, "cpu": 256}
NF4_ROUNDING = 1e-2  # relative, of a product with the same weights
VLLM_ENVIRONMENT = Path(".venv-vllm/bin/python")  # which `make setup-vllm` makes


def collectives(device: str) -> Finding:
    """all_reduce between all cards: the sum must be right; its bandwidth per card."""
    import torch

    count = torch.cuda.device_count() if device == "cuda" else PROCESSES_ON_CPU
    if count < 2:
        return skipped("one card: nothing to reduce between cards")
    with tempfile.TemporaryDirectory() as folder:
        meeting, result = Path(folder) / "meeting", Path(folder) / "seconds"
        spawn: Any = importlib.import_module("torch.multiprocessing").spawn
        spawn(_reduce, (count, device, str(meeting), str(result)), nprocs=count)
        is_right, seconds = result.read_text().split()
    # Each card sends and receives 2 (n - 1) / n of the numbers (ring all_reduce).
    rate = 2 * (count - 1) / count * REDUCED_BYTES[device] / float(seconds)
    return verdict(
        is_right == "True",
        f"{count} processes, {REDUCED_BYTES[device] / 2**20:.0f} MiB: {rate / 1e9:.1f} GB/s each",
        "the sum is wrong: set NCCL_P2P_DISABLE=1 and try again; with it, use that and report it",
        processes=count,
        bytes_per_s=rate,
    )


def _reduce(rank: int, count: int, device: str, meeting: str, result: str) -> None:
    """In one process per card: reduce, time it, and compare the sum."""
    import torch
    import torch.distributed as dist

    on_cuda = device == "cuda"
    place = torch.device("cuda", rank) if on_cuda else torch.device("cpu")
    if on_cuda:
        torch.cuda.set_device(place)
    dist.init_process_group(
        "nccl" if on_cuda else "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=count,
        timeout=PATIENCE,
    )
    values = torch.full((REDUCED_BYTES[device] // 4,), float(rank + 1), device=place)
    dist.all_reduce(values)
    is_right = bool((values == count * (count + 1) / 2).all())
    start = time.perf_counter()
    for _ in range(REPEATS):
        dist.all_reduce(values)
    float(values[0])  # waits for the device
    seconds = (time.perf_counter() - start) / REPEATS
    right = torch.tensor(int(is_right), device=place)
    dist.all_reduce(right, op=dist.ReduceOp.MIN)
    if rank == 0:
        Path(result).write_text(f"{bool(right)} {seconds}")
    dist.destroy_process_group()


def vllm_python() -> str:
    """The interpreter that has vLLM: this one, or that of the environment for vLLM."""
    if importlib.util.find_spec("vllm") is None and VLLM_ENVIRONMENT.is_file():
        return str(VLLM_ENVIRONMENT.absolute())
    return sys.executable


def vllm(device: str) -> Finding:
    """vLLM starts with the embedded model and draws answers."""
    if importlib.util.find_spec("vllm") is None:
        return skipped("vllm is not installed", advice.install("vllm"))
    from perpo_pipeline.config.model import ModelConfig
    from perpo_pipeline.config.sample import SampleConfig
    from perpo_pipeline.inference.backend import BackendSetup, Failure
    from perpo_pipeline.inference.vllm_backend import VllmBackend
    from perpo_pipeline.prepare.testbed import render_prompts
    from perpo_pipeline.testbed import testbed_settings
    from perpo_pipeline.vlm.files import resolve_model

    settings = SampleConfig(
        backend="vllm",
        num_samples=ANSWERS,
        max_new_tokens=NEW_TOKENS,
        gpu_memory_utilization=0.3,
    )
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        backend = VllmBackend(
            BackendSetup(
                ModelConfig(id="testbed"),
                resolve_model("testbed"),
                {"dtype": "bfloat16" if device == "cuda" else "float32", "preprocess": "processor"},
                settings,
                Path(scratch),
            )
        )
        with closing(backend):
            started = time.perf_counter() - start
            row = render_prompts(testbed_settings(0, "doctor", 1), "doctor")[0]
            (drawn,) = backend.sample([row], [0])
        answered = time.perf_counter() - start - started
    if isinstance(drawn, Failure):
        return Finding("failed", f"started, but: {drawn.reason}", "report the versions")
    first = drawn.completions[0].text
    return verdict(
        len(drawn.completions) == ANSWERS,
        f"started in {started:.0f} s, {len(drawn.completions)} answers in {answered:.1f} s, the "
        f"first: {first!r}",
        "use sample.backend: transformers, and report the versions",
        start_s=started,
        answers_s=answered,
    )


def bitsandbytes(device: str) -> Finding:
    """A product with weights of 4 bits (nf4) against one with the same weights in bf16."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return skipped("bitsandbytes is not installed", advice.install("quantization"))
    import torch

    bnb: Any = importlib.import_module("bitsandbytes")

    size = NF4_SIZE[device]
    torch.manual_seed(0)
    layer: Any = bnb.nn.Linear4bit(
        size, size, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
    ).to(device)
    given = torch.randn(64, size, device=device, dtype=torch.bfloat16)
    weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    found, exact = layer(given).float(), given.float() @ weight.float().T
    off = float((found - exact).norm() / exact.norm())
    return verdict(
        off < NF4_ROUNDING,
        f"bitsandbytes {bnb.__version__}: nf4 product off by {off:.1g}",
        f"reinstall it for this CUDA: {advice.install('quantization')}",
        relative_error=off,
    )
