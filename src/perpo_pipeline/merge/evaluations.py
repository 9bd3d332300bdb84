"""The `metrics` artifacts of an adapter: the given ones, or those in the adapter's own run."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perpo_pipeline.config.evaluations import BASE, BLANK_IMAGE, OTHER_IMAGE
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store.artifacts import MANIFEST, Json, Version, open_version
from perpo_pipeline.store.lineage import trace

Subject = Literal["adapter", "base", "answers"]


@dataclass(frozen=True)
class Evaluation:
    """The rows of one `metrics` artifact.

    `subject` says what was measured: the merged model, its base, or answers from a file that does
    not record which model gave them.
    """

    subject: Subject
    name: str
    fingerprint: str
    rows: list[Json]


def evaluations_of(adapter: Version, given: Iterable[Path]) -> list[Evaluation]:
    """The given metrics, or the newest in the adapter's run; then its base's on the same prompts.

    Raises ArtifactError if given metrics belong to another adapter or to a model without one.
    """
    own = [open_version(path, "metrics") for path in given]
    for metrics in own:
        _check_belongs_to(metrics, adapter)
    if not own:
        for suffix in ("", OTHER_IMAGE, BLANK_IMAGE):
            in_run = _metrics_in_run(adapter, adapter.variant + suffix)
            own += [metrics for metrics in in_run if _rests_on(metrics, adapter)][:1]
    asked = _prompts(own[0]) if own else None
    base = [m for m in _metrics_in_run(adapter, BASE) if asked is not None and _prompts(m) == asked]
    return [
        *(_evaluation("adapter" if _rests_on(m, adapter) else "answers", m) for m in own),
        *(_evaluation("base", m) for m in base[:1]),
    ]


def _evaluation(subject: Subject, metrics: Version) -> Evaluation:
    return Evaluation(subject, metrics.variant, metrics.fingerprint, metrics.table().to_pylist())


def _metrics_in_run(adapter: Version, name: str) -> list[Version]:
    """Metrics of that name in the adapter's run, newest first; none if it is in no run's folder."""
    above = adapter.path.resolve().parents
    if len(above) < 3 or above[1].name != adapter.artifact:
        return []
    found = []
    for file in (above[2] / "metrics" / name).glob(f"*/{MANIFEST}"):
        with contextlib.suppress(ArtifactError):  # an older schema
            found.append(open_version(file.parent, "metrics"))
    return sorted(found, key=lambda m: str(m.manifest["created_at"]), reverse=True)


def _rests_on(metrics: Version, adapter: Version) -> bool:
    """Whether the adapter is among the artifacts that the metrics were made from."""
    wanted = (adapter.artifact, adapter.fingerprint)
    return any((t.artifact, t.fingerprint) == wanted for t in trace([metrics]))


def _check_belongs_to(metrics: Version, adapter: Version) -> None:
    traced = trace([metrics])
    others = [f"adapter {t.variant}" for t in traced if t.artifact == adapter.artifact]
    predicted = [t.version for t in traced if t.artifact == "predictions" and t.version]
    if any("model" in version.manifest["settings"] for version in predicted):
        others.append("a model without an adapter")
    if others and not _rests_on(metrics, adapter):
        raise ArtifactError(
            f"these metrics belong to {others[0]}, not to adapter {adapter.variant} "
            f"{adapter.fingerprint}",
            where=str(metrics.path),
            fix="give the metrics that `perpo eval` wrote for this adapter",
        )


def _prompts(metrics: Version) -> str | None:
    """Fingerprint of the prompts that were asked; None if it is not known."""
    for traced in trace([metrics]):
        if traced.artifact == "predictions" and traced.version is not None:
            asked = traced.version.manifest["inputs"].get("prompts")
            return str(asked["fingerprint"]) if asked else None
    return None
