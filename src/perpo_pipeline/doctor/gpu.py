"""`perpo doctor --gpu`: what proves that the cards of this machine work, in about three minutes."""

import io
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from perpo_pipeline import advice
from perpo_pipeline.doctor.card import OLDEST_DRIVER, nvidia_smi
from perpo_pipeline.doctor.packages import installed_version
from perpo_pipeline.doctor.programs import vllm_python
from perpo_pipeline.doctor.running import Check, run_check
from perpo_pipeline.errors import ConfigError, MissingDependencyError
from perpo_pipeline.store.atomic import write_atomically
from perpo_pipeline.suggestions import did_you_mean

_REPORT = "run it once more; if it fails again, report the card, the driver and the versions"
_SLOW = "use train.forward: separate and train.compile: false, and report card and versions"
CHECKS = {
    "cards": Check("perpo_pipeline.doctor.card:cards", 60, _REPORT),
    "driver": Check("perpo_pipeline.doctor.card:driver", 60, _REPORT),
    "shared-memory": Check("perpo_pipeline.doctor.card:shared_memory", 60, _REPORT),
    "bfloat16": Check("perpo_pipeline.doctor.card:arithmetic", 60, _REPORT),
    "memory": Check("perpo_pipeline.doctor.card:memory", 60, _REPORT),
    "flex-float32": Check("perpo_pipeline.doctor.exactness:flex_float32", 120, _SLOW),
    "flex-bfloat16": Check("perpo_pipeline.doctor.exactness:flex_bfloat16", 120, _SLOW),
    "compiled-layers": Check("perpo_pipeline.doctor.exactness:compiled_layers", 180, _SLOW),
    "checkpointing": Check("perpo_pipeline.doctor.exactness:checkpointing", 180, _SLOW),
    "collectives": Check(
        "perpo_pipeline.doctor.programs:collectives",
        120,
        "set NCCL_P2P_DISABLE=1 and run it once more; NCCL_DEBUG=INFO shows where it stops",
    ),
    "bitsandbytes": Check(
        "perpo_pipeline.doctor.programs:bitsandbytes",
        60,
        advice.install("quantization"),
    ),
    "vllm": Check(
        "perpo_pipeline.doctor.programs:vllm",
        300,
        "use sample.backend and eval.backend: transformers, and report the versions",
    ),
}
Row = dict[str, Any]
Say = Callable[[str], None]


def check_card_is_there() -> None:
    """Raise if torch reaches no card: what is missing, and what to install."""
    if installed_version("torch") is None:
        raise MissingDependencyError("torch is not installed", fix="make setup")
    import torch

    from perpo_pipeline.vlm.cards import why_no_cuda

    why, found = why_no_cuda(), nvidia_smi()
    if why is None:
        return
    if not found:
        raise ConfigError(
            f"there is no NVIDIA card to check: {why}, and nvidia-smi is missing or shows no card",
            fix="install NVIDIA's driver (Ubuntu: apt-get install nvidia-driver-580), or give the "
            "container the cards (docker run --gpus all); without a card perpo runs on the CPU",
        )
    card = f"{found[0]['name']} with the driver {found[0]['driver_version']}"
    if torch.version.cuda is None:
        version = torch.__version__.partition("+")[0]
        fix = f"install the build with CUDA: pip install --force-reinstall torch=={version}"
    else:
        oldest = ", ".join(f"CUDA {cuda} needs {one}" for cuda, one in OLDEST_DRIVER.items())
        fix = f"update the driver ({oldest}), or look at CUDA_VISIBLE_DEVICES"
    raise ConfigError(f"torch does not use {card}: {why}", fix=fix)


def choose_checks(names: Sequence[str]) -> dict[str, Check]:
    """The checks to run, all without names; raises ConfigError for an unknown one."""
    for name in names:
        if name not in CHECKS:
            raise ConfigError(
                f"--check {name}: no such check{did_you_mean(name, CHECKS)}",
                fix=f"choose from {', '.join(CHECKS)}",
            )
    chosen = {name: CHECKS[name] for name in names or CHECKS}
    if "vllm" in chosen:
        chosen["vllm"] = replace(chosen["vllm"], python=vllm_python())
    return chosen


def examine_gpu(
    checks: dict[str, Check], say: Say, json_file: Path | None = None, device: str = "cuda"
) -> int:
    """Run the checks one after the other; returns how many failed.

    `say` gets each line as soon as it is known, and the JSON is written anew after each check.
    """
    rows: list[Row] = []
    for name, check in checks.items():
        found, seconds = run_check(check, device)
        say(f"{name:<16} {found.state:<8} {seconds:6.1f} s  {found.text}")
        rows.append({"name": name, **asdict(found), "seconds": round(seconds, 3)})
        if json_file is not None:
            _write(json_file, device, rows, is_complete=len(rows) == len(checks))
    failed = [row for row in rows if row["state"] == "failed"]
    say("")
    for row in rows:
        if row["fix"] is not None:
            kind = "" if row["state"] == "failed" else " (optional)"
            say(f"{row['name']}{kind}: {row['fix']}")
    count = {state: sum(row["state"] == state for row in rows) for state in ("ok", "skipped")}
    say(f"{count['ok']} ok, {len(failed)} failed, {count['skipped']} skipped")
    return len(failed)


def _write(file: Path, device: str, rows: list[Row], *, is_complete: bool) -> None:
    versions = {name: installed_version(name) for name in ("torch", "transformers", "peft", "vllm")}
    report = {
        "device": device,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "is_complete": is_complete,
        "checks": rows,
    }
    text = json.dumps(report, indent=2) + "\n"

    def write(sink: io.BufferedIOBase | Any) -> None:
        sink.write(text.encode())

    write_atomically(file, write)
