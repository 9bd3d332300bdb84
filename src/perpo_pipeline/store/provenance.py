"""What produced an artifact: package versions and the program's git commit."""

import functools
import subprocess
from importlib import metadata
from pathlib import Path

RECORDED_PACKAGES = (
    "perpo-pipeline",
    "torch",
    "transformers",
    "peft",
    "accelerate",
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
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
