"""The `metrics` artifacts of an adapter: those beside it in its run, or those that are given."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perpo_pipeline.config.evaluations import BASE, BLANK_IMAGE, OTHER_IMAGE
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store.artifacts import MANIFEST, Json, Version, open_version
from perpo_pipeline.store.lineage import trace


@dataclass(frozen=True)
class Evaluation:
    """Rows of one `metrics` artifact, and what it was measured on: `answers` were given as a file,
    so that nothing says by which model they are."""

    of: Literal["adapter", "base", "answers"]
    name: str
    fingerprint: str
    rows: list[Json]


def evaluations_of(adapter: Version, given: Iterable[Path]) -> list[Evaluation]:
    """The given ones, or the newest beside the adapter; last its base's own on the same prompts.

    Raises ArtifactError if one that is given is of another adapter or of a model without one.
    """
    own = [open_version(path, "metrics") for path in given]
    for metrics in own:
        _check_is_of(metrics, adapter)
    if not own:
        for suffix in ("", OTHER_IMAGE, BLANK_IMAGE):
            beside = _beside(adapter, adapter.variant + suffix)
            own += [metrics for metrics in beside if _is_of(metrics, adapter)][:1]
    asked = _prompts(own[0]) if own else None
    base = [m for m in _beside(adapter, BASE) if asked is not None and _prompts(m) == asked]
    return [
        *(_evaluation("adapter" if _is_of(m, adapter) else "answers", m) for m in own),
        *(_evaluation("base", m) for m in base[:1]),
    ]


def _evaluation(of: Literal["adapter", "base", "answers"], metrics: Version) -> Evaluation:
    return Evaluation(of, metrics.variant, metrics.fingerprint, metrics.table().to_pylist())


def _beside(adapter: Version, name: str) -> list[Version]:
    """Metrics of that name in the adapter's run, newest first; none outside a run's folders."""
    above = adapter.path.resolve().parents
    if len(above) < 3 or above[1].name != adapter.artifact:
        return []
    found = []
    for file in (above[2] / "metrics" / name).glob(f"*/{MANIFEST}"):
        with contextlib.suppress(ArtifactError):  # of an older schema
            found.append(open_version(file.parent, "metrics"))
    return sorted(found, key=lambda m: str(m.manifest["created_at"]), reverse=True)


def _is_of(metrics: Version, adapter: Version) -> bool:
    wanted = (adapter.artifact, adapter.fingerprint)
    return any((t.artifact, t.fingerprint) == wanted for t in trace([metrics]))


def _check_is_of(metrics: Version, adapter: Version) -> None:
    traced = trace([metrics])
    others = [f"adapter {t.variant}" for t in traced if t.artifact == adapter.artifact]
    predicted = [t.version for t in traced if t.artifact == "predictions" and t.version]
    if any("model" in version.manifest["settings"] for version in predicted):
        others.append("a model without an adapter")
    if others and not _is_of(metrics, adapter):
        raise ArtifactError(
            f"these metrics are of {others[0]}, not of adapter {adapter.variant} "
            f"{adapter.fingerprint}",
            where=str(metrics.path),
            fix="give the metrics that `perpo eval` wrote for this adapter",
        )


def _prompts(metrics: Version) -> str | None:
    """Fingerprint of the prompts that were asked; None where that is not known."""
    for traced in trace([metrics]):
        if traced.artifact == "predictions" and traced.version is not None:
            asked = traced.version.manifest["inputs"].get("prompts")
            return str(asked["fingerprint"]) if asked else None
    return None
