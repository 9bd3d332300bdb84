"""The file `current` beside the versions of an artifact, which names the one in use."""

import errno
import json
from pathlib import Path

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store.artifacts import CURRENT, MANIFEST, OPTIONS, Json
from perpo_pipeline.store.atomic import write_atomically


def set_current(root: Path, name: str, options: Json | None = None) -> None:
    """Write the name of the version in use to the file `current`, whose time stamp Make reads.

    `options` of the command that chooses it are kept beside it, for status/options.py. Where that
    version is in use already, a folder that may not be written is left as it is: only the time
    stamp would change.
    """
    try:
        _keep_options(root, name, options or {})
        write_atomically(root / CURRENT, lambda sink: sink.write(f"{name}\n".encode()))
    except ArtifactError as error:
        if not (_is_read_only(error.__cause__) and _is_in_use(root, name, options or {})):
            raise


def is_current(version: Path) -> bool:
    """Whether `current` beside a version's folder names it."""
    pointer = version.parent / CURRENT
    return pointer.is_file() and pointer.read_text(encoding="utf-8").strip() == version.name


def _is_read_only(cause: BaseException | None) -> bool:
    refused = (errno.EROFS, errno.EACCES, errno.EPERM)
    return isinstance(cause, OSError) and cause.errno in refused


def _is_in_use(root: Path, name: str, options: Json) -> bool:
    """Whether `current` names this version, and nothing is to be noted of its options."""
    if not is_current(root / name):
        return False
    known = _read_object(root / OPTIONS)
    own = known[name] if name in known else _read_object(root / name / MANIFEST).get("options", {})
    return bool(own == options) or not (options or known)


def _keep_options(root: Path, name: str, options: Json) -> None:
    """Note the options of a version; those of removed versions are forgotten."""
    known = _read_object(root / OPTIONS)
    kept = {n: given for n, given in known.items() if (root / n).is_dir() and n != name}
    kept |= {name: options}
    if kept != known and (options or known):
        text = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
        write_atomically(root / OPTIONS, lambda sink: sink.write(text.encode()))


def _read_object(file: Path) -> Json:
    """A JSON object; empty if the file cannot be read."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
