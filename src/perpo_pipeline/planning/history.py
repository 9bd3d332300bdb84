"""Speeds of finished versions: the wall time in the manifests of this machine's data folder."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from perpo_pipeline.config.inference import InferenceConfig
from perpo_pipeline.inference.backends import choose_backend
from perpo_pipeline.planning.model import Model
from perpo_pipeline.planning.rates import Key, Rate, Rates
from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import MANIFEST
from perpo_pipeline.store.provenance import machine_kind

Manifest = dict[str, Any]
Settings = Mapping[str, Any]
NEAR = 4.0  # how many times as much or little work still has the same speed
SPREAD = 1.25  # of a single measurement
FAR_SPREAD = 2.0


@dataclass(frozen=True)
class _Measured:
    """One finished version: how much it did, and in how many seconds."""

    amount: float
    seconds: float


def past_rates(
    run: Run,
    model: Model,
    planned: Mapping[Key, float],
    manifests: list[Manifest] | None = None,
) -> Rates:
    """The rate of each stage from versions with the same model and settings that decide speed.

    `planned` says how much each stage will do: versions that did about as much come first.
    `manifests` are those of `past_manifests`, for a caller that asks more than once.
    """
    if manifests is None:
        manifests = past_manifests(run.config.data_root)
    of_model = {"model": model.identity, "dtype": "bfloat16" if model.half else "float32"}
    found: dict[Key, list[_Measured]] = {}
    for key in planned:
        stage, variant = key
        for manifest in manifests:
            measured = _READERS[stage](run, variant, of_model, manifest, manifests)
            if measured is not None and measured.amount and measured.seconds > 0:
                found.setdefault(key, []).append(measured)
    return {key: _rate(found[key], planned[key], run.config.data_root) for key in found}


def past_manifests(data_root: Path) -> list[Manifest]:
    """The manifests of all runs that were made on a machine like this one."""
    return [manifest for manifest in _manifests(data_root) if _is_of_this_machine(manifest)]


def _manifests(data_root: Path) -> Iterator[Manifest]:
    """Every readable manifest of every run."""
    places = ("*/*/*/*", "*/*/*/*/*")  # those of rounds are one folder deeper
    for file in sorted(file for one in places for file in data_root.glob(f"{one}/{MANIFEST}")):
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
            _check(manifest)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # of another program, or damaged: other commands name it
        yield manifest


def _check(manifest: Manifest) -> None:
    """Raise ValueError, KeyError, TypeError or AttributeError if an entry read here is no entry."""
    _ = str(manifest["artifact"]), float(manifest["wall_s"]), float(manifest["rows"])
    _ = manifest["settings"].get("model"), float(manifest["counts"].get("lists", 0))
    _ = manifest["inputs"].get("preferences", {}).get("fingerprint"), _time(manifest)
    if (machine := manifest.get("machine")) is not None:
        _ = machine["cores"], machine["gpus"]


def _is_of_this_machine(manifest: Manifest) -> bool:
    """Whether the machine has as many cores and the same GPUs; older manifests name none."""
    here, made = machine_kind(), manifest.get("machine")
    if made is None:
        return True
    return bool(made["cores"] == here["cores"] and made["gpus"] in ([], here["gpus"]))


def _rate(measured: list[_Measured], planned: float, root: Path) -> Rate:
    """From the middle half of what is about as large as planned."""
    near = [m for m in measured if m.amount / NEAR <= planned <= m.amount * NEAR]
    spread = SPREAD if near else FAR_SPREAD
    used = near or [min(measured, key=lambda m: max(m.amount / planned, planned / m.amount))]
    quarter = len(used) // 4  # left out at either end: a computer may have slept in one
    rates = sorted(m.seconds / m.amount for m in used)[quarter : len(used) - quarter]
    several = f"{len(used)} finished versions" if len(used) > 1 else "1 finished version"
    size = "" if near else ", much larger or smaller ones"
    edge = spread if len(used) == 1 else 1 + (spread - 1) / 2
    return Rate(rates[0] / edge, rates[-1] * edge, f"{several} in {root}{size}")


def _has_backend(manifest: Manifest, config: InferenceConfig, run: Run) -> bool:
    """Whether the backend that would answer here answered; very old versions name none."""
    made = manifest["settings"].get("backend")
    model = run.config.model
    return made is None or made == choose_backend(config, model.device, model.quantization)


def _same(settings: Settings, wanted: Settings) -> bool:
    return all(
        settings.get(name) == value or settings.get(name) in by_task(value)
        for name, value in wanted.items()
    )


def by_task(value: Any) -> Collection[Any]:
    """The values of a setting by task, one of which an artifact of one task records."""
    return value.values() if isinstance(value, Mapping) else ()


def _of_sampling(
    run: Run, _: str, of_model: Settings, manifest: Manifest, all_of_them: list[Manifest]
) -> _Measured | None:
    config = run.config.sample
    wanted = {**of_model, "num_samples": config.num_samples}
    wanted["max_new_tokens"] = config.max_new_tokens
    if manifest["artifact"] != "samples" or not _same(manifest["settings"], wanted):
        return None
    if not _has_backend(manifest, config, run):
        return None
    return _Measured(manifest["rows"] / config.num_samples, manifest["wall_s"])


def _of_evaluation(
    run: Run, _: str, of_model: Settings, manifest: Manifest, all_of_them: list[Manifest]
) -> _Measured | None:
    wanted = {**of_model, "max_new_tokens": run.config.eval.max_new_tokens}
    if manifest["artifact"] != "predictions" or not _same(manifest["settings"], wanted):
        return None
    if not _has_backend(manifest, run.config.eval, run):
        return None
    if "answers_from" in (manifest.get("notes") or {}):
        return None  # the answers are an older version's, and took no time
    return _Measured(manifest["rows"], manifest["wall_s"])


def _of_reference(
    run: Run, image: str, of_model: Settings, manifest: Manifest, all_of_them: list[Manifest]
) -> _Measured | None:
    """Behind the prompts' own images if `image` is empty, else behind blank ones."""
    if manifest["artifact"] != "reference" or not _same(manifest["settings"], of_model):
        return None
    if manifest["settings"].get("shown_image", "") != image:
        return None
    return _Measured(manifest["rows"], manifest["wall_s"])


def _of_training(
    run: Run, variant: str, of_model: Settings, manifest: Manifest, all_of_them: list[Manifest]
) -> _Measured | None:
    """Without the reference that was made meanwhile."""
    if manifest["artifact"] != "adapter":
        return None
    settings = run.config.train.variants()[variant]
    own = settings.result_settings()
    wanted = {**of_model, "method": settings.method}
    wanted |= {name: own[name] for name in ("tuning", "scope", "lora") if name in own}
    found = manifest["settings"]
    if not _same(found, wanted) or found.get("tasks") != own.get("tasks"):
        return None
    amount = manifest["counts"].get("lists", 0) * found.get("epochs", 1.0)
    return _Measured(amount, manifest["wall_s"] - _reference_within(manifest, all_of_them))


def _reference_within(manifest: Manifest, all_of_them: list[Manifest]) -> float:
    """Seconds of the reference log-probabilities that were computed during a training."""
    end = _time(manifest)
    start = end - timedelta(seconds=manifest["wall_s"] + 2)  # times have whole seconds
    lists = manifest["inputs"].get("preferences", {}).get("fingerprint")
    return sum(
        float(other["wall_s"])
        for other in all_of_them
        if other["artifact"] == "reference"
        and other["inputs"].get("preferences", {}).get("fingerprint") == lists
        and start <= _time(other) <= end
    )


def _time(manifest: Manifest) -> datetime:
    return datetime.strptime(manifest["created_at"], "%Y-%m-%dT%H:%M:%SZ")


def _of_preparing(
    run: Run, split: str, _: Settings, manifest: Manifest, all_of_them: list[Manifest]
) -> _Measured | None:
    source = run.config.prepare[split].source
    if manifest["artifact"] != "prompts" or manifest["settings"].get("source") != source:
        return None
    return _Measured(manifest["rows"], manifest["wall_s"])


def _of_report(
    run: Run, _: str, of_model: Settings, manifest: Manifest, all_of_them: list[Manifest]
) -> _Measured | None:
    return _Measured(1, manifest["wall_s"]) if manifest["artifact"] == "report" else None


_READERS = {
    "prepare": _of_preparing,
    "sample": _of_sampling,
    "reference": _of_reference,
    "train": _of_training,
    "eval": _of_evaluation,
    "report": _of_report,
}
