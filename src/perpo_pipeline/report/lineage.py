"""Every artifact that a page rests on, from the lineage of its inputs."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from perpo_pipeline.store.artifacts import Json, Version
from perpo_pipeline.store.lineage import trace


@dataclass(frozen=True)
class Ancestor:
    """One artifact: what the table shows of its manifest."""

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
        """The model it was made with, if a model was."""
        return self.notes.get("model_id")


def ancestors(inputs: Iterable[Version]) -> list[Ancestor]:
    """The inputs and all that they were made of, each once, in the order of the stages.

    What has been removed since is left out: its fingerprint still stands in its children.
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
