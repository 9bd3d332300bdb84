"""What the machine offers to this process."""

import os


def cores() -> int:
    """The processor cores that this process may use (on macOS all of the machine's)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def compute_on_cpu() -> None:
    """Tell DeepSpeed, which other libraries import where it is installed, that no GPU is used.

    Unasked it looks for one, and says so on stdout, which is for results.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
