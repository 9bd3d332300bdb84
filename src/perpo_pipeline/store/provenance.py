"""What produced an artifact: package versions, the program's git commit, and the machine's kind."""

import functools
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from perpo_pipeline.machine import cores

RECORDED_PACKAGES = (
    "perpo-pipeline",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "vllm",
    "deepspeed",
    "pyarrow",
    "polars",
    "pillow",
    "torchvision",
    "tokenizers",
    "shapely",
    "rapidfuzz",
    "numpy",
)


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of the installed packages that can change a result."""
    found = {}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def git_commit() -> str | None:
    """The commit of the checkout that the program runs from, with `-dirty` if it has changes.

    None outside a checkout.
    """
    here = Path(__file__).parent
    try:
        commit = _git("describe", "--always", "--abbrev=12", "--exclude=*", cwd=here)
        # `describe --dirty` locks the index; killed on a busy machine it would leave it locked.
        changed = _git("status", "--porcelain", "--untracked-files=no", cwd=here)
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-dirty" if commit and changed else commit or None


def _git(*arguments: str, cwd: Path) -> str:
    """What git prints, without taking a lock."""
    command = ["git", "--no-optional-locks", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def machine_kind() -> dict[str, Any]:
    """The number of cores, and the names of the GPUs if this process has loaded torch.

    Times of other machines say nothing about this one.
    """
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_available()
    count = torch.cuda.device_count() if torch is not None and on_gpu else 0
    gpus = [torch.cuda.get_device_name(i) for i in range(count)] if torch is not None else []
    return {"cores": cores(), "gpus": gpus}
