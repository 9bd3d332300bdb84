"""What an artifact was made from: its inputs as its manifest records them.

A fingerprint says how an artifact was made, not what came out. Removed and made again, samples of a
server or an adapter trained on another card have other content under the same fingerprint; what was
made from the earlier ones does not belong to them. So a record has the content, too.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from perpo_pipeline.store.artifacts import MANIFEST, STARTED, Json, Version
from perpo_pipeline.store.schemas import PROMPTS

WEIGHTS = ".safetensors"
CONTENT = "content"  # in a record; those of earlier versions of this program lack it


def content_of(version: Version) -> str | None:
    """A sha256 of what other stages read of a version: its weights, or else its own table.

    None if the manifest names neither, and for prompts: their fingerprint has the hashes of what
    they were read from, and their table has paths and places, too, which change no result.
    """
    manifest = version.manifest
    if version.artifact == PROMPTS.name:
        return None
    read = [one["sha256"] for one in manifest.get("files", []) if one["file"].endswith(WEIGHTS)]
    if not read:
        read = [one["sha256"] for one in manifest["parts"] if one["table"] == version.artifact]
    return _digest(read) if read else None


def records_of(path: Path, inputs: Mapping[str, Version]) -> Json:
    """How the manifest of the version at `path` records its inputs, by name."""
    return {
        name: {
            "artifact": version.artifact,
            "variant": version.variant,
            "path": os.path.relpath(version.path.resolve(), path.resolve()),
            "fingerprint": version.fingerprint,
            "identity": version.identity,
            CONTENT: content_of(version),
        }
        for name, version in inputs.items()
    }


def is_of(record: Json, version: Version) -> bool:
    """Whether a recorded input is this version, with the content that it has now.

    Which prompts failed and the content are compared where the record has them.
    """
    has_identity = "identity" in record
    then = record["identity"] if has_identity else record["fingerprint"]
    now = version.identity if has_identity else version.fingerprint
    return bool(then == now) and not was_made_again(record, version)


def was_made_again(record: Json, version: Version) -> bool:
    """Whether a recorded input has the version's fingerprint and another content."""
    is_same_recipe = record["fingerprint"] == version.fingerprint
    return bool(is_same_recipe) and differ(record.get(CONTENT), content_of(version))


def is_same_input(record: Json, other: Json) -> bool:
    """Whether two manifests record the same input; contents count where both have them."""
    is_same_recipe = record.get("fingerprint") == other.get("fingerprint")
    return is_same_recipe and not differ(record.get(CONTENT), other.get(CONTENT))


def place_of(root: Path, fingerprint: str, inputs: Mapping[str, Version]) -> Path:
    """The folder of a version under `root`, which need not exist: named like its fingerprint.

    Where that folder has a version of inputs that were made again since, it is another one beside
    it, whose name also has a hash of their content: nothing overwrites a version. That one stays
    the place if the first is removed.
    """
    contents = [f"{name} {content_of(version)}" for name, version in sorted(inputs.items())]
    plain = root / fingerprint
    beside = root / f"{fingerprint}-{_digest(contents)[:8]}"
    if _is_begun(plain):
        return beside if of_earlier_inputs(plain, inputs) else plain
    return beside if _is_begun(beside) else plain


def fingerprint_in(name: str) -> str:
    """The fingerprint in the name of a version's folder (`place_of`)."""
    return name.partition("-")[0]


def of_earlier_inputs(path: Path, inputs: Mapping[str, Version]) -> bool:
    """Whether the version at `path`, finished or begun, has inputs that were made again since."""
    for name in (MANIFEST, STARTED):
        try:
            recorded = json.loads((path / name).read_text(encoding="utf-8"))["inputs"]
            return any(
                was_made_again(recorded[name], version)
                for name, version in inputs.items()
                if name in recorded
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return False


def differ(one: str | None, other: str | None) -> bool:
    """Whether two contents are known, and not the same."""
    return None not in (one, other) and one != other


def _is_begun(path: Path) -> bool:
    return (path / MANIFEST).is_file() or (path / STARTED).is_file()


def _digest(texts: list[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
