"""The version of a recipe on disk: today's, or one that an older rule made (old_rules.py).

`same.json` beside `current` remembers under which fingerprint of today an older version was found.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store.artifacts import (
    MANIFEST,
    STARTED,
    Json,
    Version,
    open_version,
    read_part,
    require_parts,
)
from perpo_pipeline.store.atomic import write_atomically
from perpo_pipeline.store.made_from import fingerprint_in, of_earlier_inputs, was_made_again
from perpo_pipeline.store.old_rules import RULES, Trust, same_settings
from perpo_pipeline.store.schemas import ALL
from perpo_pipeline.store.writing import Recipe, Writer, fingerprint_of, use

SAME_AS = "same.json"


@dataclass(frozen=True)
class Older:
    """A complete version that an older rule made, and what it takes to use it."""

    version: Version
    trust: Trust


def reuse_complete(
    root: Path, recipe: Recipe, confirm: Callable[[Version], bool] | None = None
) -> Version | None:
    """Make the complete version of this recipe under `root` current, unless it is made aside; None
    if there is none.

    A version that an older rule made counts where its content is the same; `confirm` decides where
    that depends on more than the recipe.
    """
    if (version := version_of(root, recipe)) is None:
        version = _same_content(root, recipe, confirm)
        if version is None:
            return None
        _remember(root, recipe, version)
    use(root, version.path.name, recipe)
    return version


def version_of(root: Path, recipe: Recipe) -> Version | None:
    """The complete version of a recipe: today's, or the older one that was found before."""
    places = [recipe.place(root)]
    older = remembered(root).get(recipe.fingerprint)
    if older is not None and not of_earlier_inputs(root / older, recipe.inputs):
        places.append(root / older)
    for path in places:
        if (path / MANIFEST).is_file():
            version = open_version(path, recipe.artifact)
            require_parts(version)
            return version
    return None


def made_version(root: Path, recipe: Recipe) -> Version:
    """The complete version of a recipe that was made or found before; raises ArtifactError."""
    return version_of(root, recipe) or open_version(recipe.place(root), recipe.artifact)


def older_versions(root: Path, recipe: Recipe) -> Iterator[Older]:
    """Complete versions of this recipe that older rules made, the newest first."""
    if (recipe.artifact, recipe.stage) not in RULES:
        return
    found = []
    for folder in (root, *_older_folders(root, recipe)):
        for manifest in folder.glob(f"*/{MANIFEST}"):
            try:
                version = open_version(manifest.parent, recipe.artifact)
            except ArtifactError:
                continue
            if trust := _trust(version, recipe):
                found.append(Older(version, trust))
    yield from sorted(found, key=lambda o: str(o.version.manifest["created_at"]), reverse=True)


def use_equal_older(writer: Writer) -> Version | None:
    """Before a version is finished: the older one with the same rows, made current; or None.

    Looks at versions of `Trust.COMPARE` alone. The caller removes what `writer` has written.
    """
    for older in older_versions(writer.root, writer.recipe):
        if older.trust is Trust.COMPARE and _has_rows_of(older.version, writer):
            _remember(writer.root, writer.recipe, older.version)
            use(writer.root, older.version.path.name, writer.recipe)
            return older.version
    return None


def left_behind(root: Path, recipe: Recipe) -> list[Path]:
    """Unfinished versions of this recipe that an older rule began: they cannot be resumed."""
    if (recipe.artifact, recipe.stage) not in RULES:
        return []
    found = []
    for folder in (root, *_older_folders(root, recipe)):
        for file in sorted(folder.glob(f"*/{STARTED}")):
            path = file.parent
            is_other = fingerprint_in(path.name) != recipe.fingerprint
            is_open = is_other and not (path / MANIFEST).is_file()
            if is_open and any(path.glob("*.parquet")) and _began_as(file, recipe):
                found.append(path)
    return found


def how_old(version: Version, recipe: Recipe) -> str:
    """How a version that was found differs from today's rule; empty if it does not."""
    if version.fingerprint == recipe.fingerprint:
        return ""
    schema, today = version.manifest["schema_version"], ALL[recipe.artifact].version
    return (
        f"made by an older rule (stage version {version.manifest['stage_version']}, schema version "
        f"{schema}; today {recipe.stage_version} and {today}), with the same content"
    )


def _same_content(
    root: Path, recipe: Recipe, confirm: Callable[[Version], bool] | None
) -> Version | None:
    for older in older_versions(root, recipe):
        if older.version.path.parent != root:
            continue
        is_confirmed = older.trust is Trust.CONFIRM and confirm is not None
        if older.trust is Trust.SAME or (is_confirmed and confirm and confirm(older.version)):
            return older.version
    return None


def _older_folders(root: Path, recipe: Recipe) -> list[Path]:
    """Where the variant was before its name had a split: `perpo` for `perpo@test`."""
    name, at, _ = recipe.variant.partition("@")
    is_evaluation = at and recipe.artifact == "predictions" and root.name == recipe.variant
    return [root.parent / name] if is_evaluation else []


def _trust(version: Version, recipe: Recipe) -> Trust | None:
    """How far `version` can stand for `recipe`; None if it is another recipe's."""
    manifest, rule = version.manifest, RULES[recipe.artifact, recipe.stage]
    if (
        version.fingerprint == recipe.fingerprint
        or manifest["stage"] != recipe.stage
        or not same_settings(recipe.artifact, recipe.stage, manifest["settings"], _plain(recipe))
        or not _same_inputs(manifest["inputs"], recipe)
        or not _is_as_recorded(version)
    ):
        return None
    if manifest["stage_version"] != recipe.stage_version:
        return rule.stages.get(manifest["stage_version"])
    if manifest["schema_version"] == ALL[recipe.artifact].version:
        return Trust.SAME
    return rule.schemas.get(manifest["schema_version"], rule.other_schema)


def _plain(recipe: Recipe) -> Json:
    """The settings as a manifest records them."""
    found: Json = json.loads(json.dumps(recipe.settings))
    return found


def _same_inputs(recorded: Json, recipe: Recipe) -> bool:
    return {name: record["fingerprint"] for name, record in recorded.items()} == {
        name: version.fingerprint for name, version in recipe.inputs.items()
    } and not any(was_made_again(recorded[name], one) for name, one in recipe.inputs.items())


def _is_as_recorded(version: Version) -> bool:
    """Whether the fingerprint is that of what the manifest records, with the inputs as they are.

    At first a fingerprint counted those of the inputs; since then it also counts which of their
    prompts failed. A version of the first kind may be older than the last retry of its input.
    """
    manifest = json.loads((version.path / MANIFEST).read_text(encoding="utf-8"))
    identities, fingerprints = {}, {}
    for name, record in manifest["inputs"].items():
        identities[name] = fingerprints[name] = record["fingerprint"]
        try:
            parent = open_version(version.path / record["path"])
        except ArtifactError:
            continue
        identities[name] = parent.identity
        may_be_retried = "failed" in parent.manifest["counts"]
        if may_be_retried and parent.manifest["created_at"] > manifest["created_at"]:
            return False
    return version.fingerprint == _fingerprint(manifest, identities) or (
        identities == fingerprints and version.fingerprint == _fingerprint(manifest, fingerprints)
    )


def _fingerprint(manifest: Json, inputs: dict[str, str]) -> str:
    names = ("artifact", "stage", "stage_version", "schema_version", "settings")
    return fingerprint_of({**{name: manifest[name] for name in names}, "inputs": inputs})


def _began_as(file: Path, recipe: Recipe) -> bool:
    """Whether a version that was begun has this recipe, by whatever rule."""
    try:
        started = json.loads(file.read_text(encoding="utf-8"))
        return (
            started["stage"] == recipe.stage
            and same_settings(recipe.artifact, recipe.stage, started["settings"], _plain(recipe))
            and _same_inputs(started["inputs"], recipe)
        )
    except (json.JSONDecodeError, KeyError, OSError):
        return False


def _has_rows_of(older: Version, writer: Writer) -> bool:
    """Whether the parts of `older` have the rows that were written, in the columns of both.

    The bytes of images are compared by their hash.
    """
    mine, theirs = writer.parts(), older.parts()
    return len(mine) == len(theirs) and all(map(_equal_rows, theirs, mine))


def _equal_rows(older: Path, newer: Path) -> bool:
    stored = set(pq.read_schema(older).names)
    names = [name for name in pq.read_schema(newer).names if name in stored]
    columns = ["image.path" if name == "image" else name for name in names]
    first, second = (_plain_rows(read_part(part, columns)) for part in (older, newer))
    return bool(first.equals(second))


def _plain_rows(table: pa.Table) -> pa.Table:
    fields = [field.with_nullable(True).remove_metadata() for field in table.schema]
    return table.replace_schema_metadata(None).cast(pa.schema(fields))


def remembered(root: Path) -> dict[str, str]:
    """Today's fingerprint -> the older version that was found for it."""
    file = root / SAME_AS
    if not file.is_file():
        return {}
    try:
        return {str(k): str(v) for k, v in json.loads(file.read_text()).items()}
    except (json.JSONDecodeError, AttributeError):
        return {}  # written again below


def _remember(root: Path, recipe: Recipe, version: Version) -> None:
    known = {**remembered(root), recipe.fingerprint: version.path.name}
    text = json.dumps(known, indent=2) + "\n"
    write_atomically(root / SAME_AS, lambda sink: sink.write(text.encode()))
