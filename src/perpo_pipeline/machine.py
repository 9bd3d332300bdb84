"""What the machine offers to this process."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


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


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, and put back at the end what was there."""
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
