"""All artifacts that the page was made from, directly or through other artifacts."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from perpo_pipeline.status.lineage import trace
from perpo_pipeline.store.artifacts import Json, Version


@dataclass(frozen=True)
class Ancestor:
    """One artifact, with the parts of its manifest that the page shows."""

    artifact: str
    variant: str
    fingerprint: str
    rows: int
    made_at: str
    wall_s: float
    settings: str
    git_commit: str | None
    packages: tuple[tuple[str, str], ...]
    notes: Json

    @property
    def model(self) -> str | None:
        """The model that made it; None if no model did."""
        return self.notes.get("model_id")


def ancestors(inputs: Iterable[Version]) -> list[Ancestor]:
    """The inputs and everything they were made from, each once, in the order of the stages.

    Removed artifacts are left out; the artifacts made from them still name their fingerprints.
    """
    return [_ancestor(traced.version) for traced in trace(inputs) if traced.version is not None]


def _ancestor(version: Version) -> Ancestor:
    manifest = version.manifest
    shown = {
        "settings": manifest["settings"],
        "notes": manifest["notes"],
        "counts": manifest["counts"],
        "inputs": {k: v["fingerprint"] for k, v in manifest["inputs"].items()},
    }
    return Ancestor(
        artifact=version.artifact,
        variant=version.variant,
        fingerprint=version.fingerprint,
        rows=manifest["rows"],
        made_at=manifest["created_at"],
        wall_s=manifest["wall_s"],
        settings=json.dumps({k: v for k, v in shown.items() if v}, indent=2, ensure_ascii=False),
        git_commit=manifest["git_commit"],
        packages=tuple(sorted(manifest["packages"].items())),
        notes=manifest["notes"],
    )
