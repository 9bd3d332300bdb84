"""`perpo merge`: an adapter artifact and its base -> one model in the hub's layout.

The result is no artifact: it goes where the user says and holds what a hub expects.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from perpo_pipeline.errors import ArtifactError, ConfigError, InputError
from perpo_pipeline.merge.card import model_card
from perpo_pipeline.merge.evaluations import evaluations_of
from perpo_pipeline.merge.folder import (
    RECORD_FORMAT,
    Record,
    made_before,
    renew_card,
    write_folder,
)
from perpo_pipeline.run import Console
from perpo_pipeline.store.artifacts import CURRENT, MANIFEST, Version, damaged_files, open_version
from perpo_pipeline.store.lineage import trace
from perpo_pipeline.store.provenance import git_commit, package_versions
from perpo_pipeline.vlm.adapters import check_adapter_files, read_record
from perpo_pipeline.vlm.files import ResolvedModel, model_identity, resolve_model
from perpo_pipeline.vlm.inputs import IDENTITY_CACHE
from perpo_pipeline.vlm.merged import write_merged

DTYPES = ("auto", "float32", "bfloat16")


def merge(
    adapter: Path,
    out: Path,
    *,
    model: str | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    metrics: Sequence[Path] = (),
    console: Console | None = None,
) -> Path:
    """Write the model that `adapter` (an artifact) makes of its base to `out`, whole or not at all.

    model, revision: the base, where it is not to be found under the name in the adapter's manifest;
    dtype: of the weights that are written, `auto` being the one of the training; metrics: artifacts
    for the model card, by default those beside the adapter. An `out` that holds this very merge is
    left as it is, but for new figures in its card. Raises ArtifactError for what is no adapter, an
    adapter of another base, an `out` with other content and where it cannot be written, InputError
    for a base that cannot be had, ConfigError for an unknown dtype.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"there is no dtype {dtype!r}", fix=f"one of {', '.join(DTYPES)}")
    console = console or Console()
    started = time.monotonic()
    version = open_adapter(adapter)
    base = find_base(version, model, revision)
    record = _describe(version, base, dtype)
    place = out.resolve()
    made = made_before(place, record)
    evaluations, lineage = evaluations_of(version, metrics), trace([version])

    def card(record: Record) -> str:
        return model_card(record, version, lineage, evaluations)

    if made is not None:
        told = renew_card(place, made, card(made))
        console.say(f"merge {version.variant}: up to date{told} ({out})")
        return out
    write_folder(
        place, record, lambda to: write_merged(base, version.path, record["dtype"], to), card
    )
    seconds = time.monotonic() - started
    console.say(f"merge {version.variant}: {record['dtype']} in {seconds:.1f} s ({out})")
    return out


def open_adapter(path: Path) -> Version:
    """The adapter artifact at `path`, or its version in use; every file as it was written."""
    if not (path / MANIFEST).is_file() and not (path / CURRENT).is_file():
        raise ArtifactError(
            "this is no adapter of `perpo train`" if path.exists() else "there is no such folder",
            where=str(path),
            fix="give an adapter artifact that is finished, such as data/<run>/adapter/<variant>",
        )
    version = open_version(path, "adapter")
    if damaged := damaged_files(version):
        raise ArtifactError(
            f"damaged files: {', '.join(damaged)}",
            where=str(version.path),
            fix="remove this directory and rerun `perpo train`",
        )
    return version


def find_base(
    adapter: Version, model: str | None = None, revision: str | None = None
) -> ResolvedModel:
    """The base on this machine, its identity known; raises ArtifactError if it is another one.

    Where the manifest names a hub's model, the very commit of the training is asked for.
    """
    asked, revision = (model, revision) if model else _trained_on(adapter)
    try:
        resolved = resolve_model(asked, revision)
    except InputError as error:
        elsewhere = "if it lies elsewhere now, give it with --model"
        fix = "; ".join(filter(None, [error.fix, None if model else elsewhere]))
        raise InputError(error.what, where=error.where, fix=fix) from error
    caches = [above / IDENTITY_CACHE for above in adapter.path.resolve().parents[:3]]
    cache = next((file for file in caches if file.is_file()), None)
    identity = model_identity(resolved, cache)
    check_adapter_files(adapter.path, identity)
    if resolved.commit is None:  # not hashed a second time
        return replace(resolved, weights_sha256=identity.removeprefix("sha256:"))
    return resolved


def _trained_on(adapter: Version) -> tuple[str, str | None]:
    """Name and revision of the base as the training found it."""
    notes = adapter.manifest["notes"]
    if not notes.get("model_id"):
        raise ConfigError(
            "the adapter's manifest names no base model",
            where=str(adapter.path),
            fix="name it with --model",
        )
    identity = str(read_record(adapter.path).get("base_identity", ""))
    name, _, commit = identity.rpartition("@")
    return notes["model_id"], commit if name == notes["model_id"] else notes.get("revision")


def _describe(adapter: Version, base: ResolvedModel, dtype: str) -> Record:
    """What perpo_merge.json says, but for the files; a folder's own name, not its place."""
    is_directory = base.commit is None and base.model_id != "testbed"
    return {
        "merge_format": RECORD_FORMAT,
        "base_model": base.path.name if is_directory else base.model_id,
        "base_is_directory": is_directory,
        "base_identity": model_identity(base),
        "adapter": {"variant": adapter.variant, "fingerprint": adapter.fingerprint},
        "dtype": adapter.manifest["settings"]["dtype"] if dtype == "auto" else dtype,
        "packages": package_versions(),
        "git_commit": git_commit(),
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
