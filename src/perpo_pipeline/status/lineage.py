"""The lineage of artifacts: their inputs, back to the prompts."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.status.graph import ORDER
from perpo_pipeline.store.artifacts import Json, Version, open_version
from perpo_pipeline.store.made_from import CONTENT, content_of, is_of


@dataclass(frozen=True)
class Traced:
    """One artifact, and what later stages read of it (store/made_from.py), if that is known.

    `version` is None if it was removed or made again, or its schema version is not readable.
    """

    artifact: str
    variant: str
    fingerprint: str
    version: Version | None
    content: str | None = None


def trace(versions: Iterable[Version]) -> list[Traced]:
    """`versions` with all direct and indirect inputs, each once, in the order of the stages."""
    found: dict[tuple[str, str, str], Traced] = {}
    frontier = [_of_version(version) for version in versions]
    while frontier:
        traced = frontier.pop()
        key = (traced.artifact, traced.variant, traced.fingerprint)
        known = found.get(key)
        if known is not None and (known.version is not None or traced.version is None):
            continue
        found[key] = traced
        if traced.version is not None:
            records = traced.version.manifest["inputs"].values()
            frontier += [_of_record(record, traced.version.path) for record in records]
    return sorted(found.values(), key=lambda t: (_rank(t.artifact), t.variant, t.fingerprint))


def _of_version(version: Version) -> Traced:
    return Traced(
        version.artifact, version.variant, version.fingerprint, version, content_of(version)
    )


def _of_record(record: Json, child: Path) -> Traced:
    """An input as its child's manifest records it, opened if it still exists."""
    try:
        version = open_version(child / record["path"])
    except ArtifactError:
        version = None
    if version is not None and not is_of(record, version):
        version = None
    named = record["artifact"], record["variant"], record["fingerprint"]
    return Traced(*named, version, record.get(CONTENT))


def _rank(artifact: str) -> int:
    return ORDER.index(artifact) if artifact in ORDER else len(ORDER)
