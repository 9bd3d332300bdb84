"""What made an artifact: package versions and the git commit of the program."""

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
    """Versions of the packages that can change a result, as far as they are installed."""
    found = {}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def git_commit() -> str | None:
    """Commit of the checkout that the program runs from, with `-dirty` if changed; else None."""
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
