"""Every artifact that a page rests on, from the lineage of its inputs."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from perpo_pipeline.artifacts import Json, Version, open_version

# The order in which the stages run, for the table.
ORDER = ("prompts", "samples", "scores", "preferences", "reference", "adapter", "predictions",
         "metrics")  # fmt: skip


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
    found: dict[str, Version] = {}
    frontier = list(inputs)
    while frontier:
        version = frontier.pop()
        key = f"{version.artifact}/{version.variant}/{version.fingerprint}"
        if key in found:
            continue
        found[key] = version
        parents = [version.path / r["path"] for r in version.manifest["inputs"].values()]
        frontier += [open_version(parent) for parent in parents if parent.is_dir()]
    rows = [_ancestor(version) for version in found.values()]
    return sorted(rows, key=lambda a: (_rank(a.artifact), a.variant, a.fingerprint))


def _rank(artifact: str) -> int:
    return ORDER.index(artifact) if artifact in ORDER else len(ORDER)


def _ancestor(version: Version) -> Ancestor:
    manifest = version.manifest
    shown = {"settings": manifest["settings"], "notes": manifest["notes"],
             "counts": manifest["counts"],
             "inputs": {k: v["fingerprint"] for k, v in manifest["inputs"].items()}}  # fmt: skip
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
