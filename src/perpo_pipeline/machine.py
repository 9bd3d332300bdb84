"""The machine as this process sees it: cores, threads, environment variables."""

import gc
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

GIB = 2**30
STARTED = time.monotonic()  # the command line imports this module first


def cores() -> int:
    """The number of processor cores that this process may use (on macOS: all cores)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """The machine's memory."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    total = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemTotal"))
    return int(total.split()[1]) * 2**10


def wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait, unless the user chose a policy.

    Call it before torch is imported: OpenMP reads the variable when it is loaded. By default these
    threads spin, and beside other work on the same cores a training step then takes six times the
    processor time.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def collect_garbage_less_often() -> None:
    """Look for unused objects in cycles after every 10,000 new objects instead of 700.

    torch, transformers and PEFT make a million objects that stay. By default a sixth of the time
    of their import goes into visiting those again and again.
    """
    gc.set_threshold(10_000, 20, 20)


def compute_on_cpu() -> None:
    """Declare to DeepSpeed that no GPU is used.

    Other libraries import DeepSpeed wherever it is installed. Without the declaration it searches
    for a GPU and prints what it finds to stdout, which is for results.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the block, and restore the former values after it."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
