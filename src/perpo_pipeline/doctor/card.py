"""Checks of the cards themselves: driver, versions, arithmetic, memory, shared memory."""

import math
import shutil
import subprocess
import time
from collections.abc import Callable

from packaging.version import Version

from perpo_pipeline.doctor.finding import Finding, skipped, verdict
from perpo_pipeline.doctor.packages import installed_version, misfit_of_vllm, pinned
from perpo_pipeline.machine import GIB
from perpo_pipeline.vlm.cards import check_card, unlike_cards, visible_cards

# The oldest Linux driver for each CUDA version (NVIDIA's CUDA compatibility guide, minor versions).
OLDEST_DRIVER = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
FACTS = (
    "name",
    "driver_version",
    "memory.total",
    "memory.used",
    "compute_cap",
    "pcie.link.gen.max",
    "pcie.link.width.max",
    "power.limit",
    "temperature.gpu",
    "compute_mode",
    "mig.mode.current",
    "ecc.mode.current",
)
SMALLEST_SHARE = 0.9  # of a card's memory that should be free
MATRIX = {"cuda": 8192, "cpu": 256}
ROWS_COMPARED = 64
ROUNDING = 2e-2  # relative, of a bf16 product against fp32
COPIED_BYTES = {"cuda": 2**28, "cpu": 2**22}
SLOWEST_COPY = 1e9  # bytes/s: a PCIe 3.0 link with one lane


def nvidia_smi() -> list[dict[str, str]]:
    """What `nvidia-smi` says of each card, by the names of FACTS; empty without it or a card."""
    if shutil.which("nvidia-smi") is None:
        return []
    asked = ["nvidia-smi", f"--query-gpu={','.join(FACTS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
    except subprocess.TimeoutExpired:
        return []
    rows = [line.split(", ") for line in done.stdout.splitlines()] if not done.returncode else []
    return [dict(zip(FACTS, row, strict=True)) for row in rows if len(row) == len(FACTS)]


def cards(device: str) -> Finding:
    """nvidia-smi's facts; fails where another program uses a card's memory."""
    found = nvidia_smi()
    if not found:
        return skipped("nvidia-smi is not there, or shows no card")
    named = [
        f"{i}: {card['name']}, {_gib(card['memory.total'])} GiB, sm_{card['compute_cap']}, PCIe "
        f"{card['pcie.link.gen.max']} x{card['pcie.link.width.max']}, {card['power.limit']} W"
        for i, card in enumerate(found)
    ]
    busy = [
        f"{_gib(card['memory.used'])} GiB of card {i} are used by other programs"
        for i, card in enumerate(found)
        if _mib(card["memory.used"]) > (1 - SMALLEST_SHARE) * _mib(card["memory.total"])
    ]
    return verdict(
        not busy,
        "; ".join(busy or named),
        "end these programs: nvidia-smi lists them",
        cards=found,
    )


def _gib(mib: str) -> str:
    return mib if math.isnan(_mib(mib)) else f"{float(mib) / 1024:.0f}"


def _mib(text: str) -> float:
    """NaN where a card gives no number: `[N/A]` if it shares the host's memory, or under MIG."""
    return float(text) if text.replace(".", "").isdigit() else math.nan


def driver(device: str) -> Finding:
    """The driver against torch's CUDA, and torch against the pinned vLLM."""
    import torch

    cuda, found = torch.version.cuda, nvidia_smi()
    installed = found[0]["driver_version"] if found else None
    text = f"driver {installed or 'unknown'}, torch {torch.__version__}, CUDA {cuda or 'none'}"
    figures = {"driver": installed, "torch": torch.__version__, "cuda": cuda}
    if cuda is not None and installed is not None:
        oldest = OLDEST_DRIVER.get(int(cuda.split(".")[0]))
        if oldest is not None and Version(installed) < Version(oldest):
            fix = f"install the driver {oldest} or newer, or a torch for an older CUDA"
            return verdict(False, f"{text}: CUDA {cuda} needs the driver {oldest}", fix, **figures)
    if misfit := misfit_of_vllm():
        return verdict(False, f"{text}; {misfit[0]}", misfit[1], **figures)
    pin = pinned("vllm")
    vllm = installed_version("vllm") or "not installed" + (f" (pinned: {pin})" if pin else "")
    return Finding("ok", f"{text}, vllm {vllm}", None, figures)


def arithmetic(device: str) -> Finding:
    """A large bf16 product: its rate, and whether it agrees with fp32.

    Raises ConfigError for a card without bf16.
    """
    import torch

    for place, one in enumerate(visible_cards() if device == "cuda" else []):
        check_card(one, "bfloat16", None, place=place)
    size, repeats = MATRIX[device], 10 if device == "cuda" else 1
    torch.manual_seed(0)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = _timed(lambda: a @ b, device, repeats)
    exact = a[:ROWS_COMPARED].float() @ b.float()
    off = float(((a @ b)[:ROWS_COMPARED].float() - exact).norm() / exact.norm())
    rate = 2 * size**3 / seconds / 1e12
    return verdict(
        off < ROUNDING,
        f"{size} x {size} x {size} in bfloat16: {rate:.3g} TFLOP/s, off by {off:.1g} of fp32",
        "the card computes wrong results: run its vendor's diagnosis (dcgmi diag -r 3)",
        tflops=rate,
        relative_error=off,
    )


def memory(device: str) -> Finding:
    """Free and whole memory of each card, unlike cards, and the rate of copies from the host."""
    import torch

    sizes = (
        [torch.cuda.mem_get_info(i) for i in range(torch.cuda.device_count())]
        if device == "cuda"
        else []
    )
    shown = ", ".join(f"{free / GIB:.1f} of {all_ / GIB:.1f} GiB free" for free, all_ in sizes)
    host = torch.empty(COPIED_BYTES[device], dtype=torch.uint8, pin_memory=device == "cuda")
    there = torch.empty_like(host, device=device)
    rates = {
        "to_device_bytes_per_s": len(host) / _timed(lambda: there.copy_(host), device, 5),
        "to_host_bytes_per_s": len(host) / _timed(lambda: host.copy_(there), device, 5),
    }
    to, back = (f"{rate / 1e9:.1f}" for rate in rates.values())
    copies = f"copies {to} GB/s to the card, {back} GB/s back"
    if unlike := unlike_cards(visible_cards() if device == "cuda" else []):
        return verdict(False, unlike, "choose equal cards with CUDA_VISIBLE_DEVICES")
    return verdict(
        min(rates.values()) > SLOWEST_COPY,
        f"{shown or 'the processor'}; {copies}",
        "reseat the card, or ask the provider: its link to the host is too slow",
        free_bytes=[free for free, _ in sizes],
        total_bytes=[all_ for _, all_ in sizes],
        **rates,
    )


def shared_memory(device: str) -> Finding:
    """/dev/shm against what image workers of a training hold there."""
    from perpo_pipeline.train.image_workers import (
        FIX,
        NEEDED_BYTES,
        SHARED_MEMORY,
        lacks_shared_memory,
    )

    if not SHARED_MEMORY.is_dir():
        return skipped(f"there is no {SHARED_MEMORY}")
    free = shutil.disk_usage(SHARED_MEMORY).free
    needed = f"image workers need {NEEDED_BYTES / 2**20:,.0f} MiB (computed)"
    return verdict(
        lacks_shared_memory() is None,
        f"{free / 2**20:,.0f} MiB free, {needed}",
        FIX,
        free_bytes=free,
        needed_bytes=NEEDED_BYTES,
    )


def _timed(work: Callable[[], object], device: str, repeats: int) -> float:
    """Seconds of one call, after a first one."""
    import torch

    wait: Callable[[], object] = torch.cuda.synchronize if device == "cuda" else int
    work()
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    wait()
    return (time.perf_counter() - start) / repeats
