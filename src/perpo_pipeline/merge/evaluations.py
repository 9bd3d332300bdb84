"""The `metrics` artifacts of an adapter: the given ones, or those in the adapter's own run."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from perpo_pipeline.config.evaluations import BASE, BLANK_IMAGE, OTHER_IMAGE, read_evaluation
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.status.lineage import trace
from perpo_pipeline.store.artifacts import MANIFEST, Json, Version, open_version
from perpo_pipeline.store.current import is_current
from perpo_pipeline.store.made_from import content_of, differ

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
    """The given metrics, or those in use in the adapter's run, those of one split together.

    Where the metrics in use were not made from this adapter, the newest that were are taken.

    The base's metrics on the same prompts follow those of each split. Raises ArtifactError if given
    metrics belong to another adapter or to a model without one.
    """
    own = [open_version(path, "metrics") for path in given]
    for metrics in own:
        _check_belongs_to(metrics, adapter)
    groups: dict[str | None, list[Version]] = {}
    for metrics in own or _in_use_of(adapter):
        groups.setdefault(_prompts(metrics), []).append(metrics)
    base = [m for m in _metrics_in_run(adapter, BASE) if not read_evaluation(m.variant).image]
    found = []
    for asked, group in groups.items():
        found += [_evaluation("adapter" if _rests_on(m, adapter) else "answers", m) for m in group]
        same = (m for m in base if asked is not None and _prompts(m) == asked)
        found += [_evaluation("base", m) for m in islice(same, 1)]
    return found


def _evaluation(subject: Subject, metrics: Version) -> Evaluation:
    return Evaluation(subject, metrics.variant, metrics.fingerprint, metrics.table().to_pylist())


def _in_use_of(adapter: Version) -> list[Version]:
    """The metrics of each of the adapter's evaluations, by split and image."""
    found: dict[str, Version] = {}
    for metrics in _metrics_in_run(adapter, adapter.variant):
        if _rests_on(metrics, adapter):
            found.setdefault(metrics.variant, metrics)
    return [found[name] for name in sorted(found, key=_place)]


def _place(name: str) -> tuple[str, int]:
    asked = read_evaluation(name)
    return asked.split, ("", OTHER_IMAGE, BLANK_IMAGE).index(asked.image)


def _metrics_in_run(adapter: Version, model: str) -> list[Version]:
    """A model's metrics in the adapter's run, those in use first, then the newest.

    None if the adapter is in no run's folder.
    """
    above = adapter.path.resolve().parents
    if len(above) < 3 or above[1].name != adapter.artifact:
        return []
    found = []
    for file in (above[2] / "metrics").glob(f"{model}*/*/{MANIFEST}"):
        with contextlib.suppress(ArtifactError):  # an older schema
            found.append(open_version(file.parent, "metrics"))
    own = [metrics for metrics in found if _is_of(model, metrics.variant)]
    return sorted(
        own, key=lambda m: (is_current(m.path), str(m.manifest["created_at"])), reverse=True
    )


def _is_of(model: str, name: str) -> bool:
    """Whether an evaluation is the model's; names of before had no split."""
    asked = read_evaluation(name)
    return asked.model == model and asked.split != ""


def _rests_on(metrics: Version, adapter: Version) -> bool:
    """Whether the adapter is among the artifacts that the metrics were made from."""
    wanted, weights = (adapter.artifact, adapter.fingerprint), content_of(adapter)
    return any(
        (t.artifact, t.fingerprint) == wanted and not differ(t.content, weights)
        for t in trace([metrics])
    )


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
