"""Files that are either whole or absent: write, sync to disk, rename."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from perpo_pipeline.errors import ArtifactError

RESUMES = "it resumes after the last whole part"


def write_atomically(
    path: Path, write: Callable[[IO[bytes]], object], same_command: str = RESUMES
) -> None:
    """Call `write` with a temporary file, which replaces `path` once it is whole and on disk.

    Whatever `write` raises, the temporary file is removed. `same_command`: see
    `os_errors_explained`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with os_errors_explained(path, same_command):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as sink:
                write(sink)
                sink.flush()
                os.fsync(sink.fileno())
            os.replace(temporary, path)
            sync_directory(path.parent)
        except BaseException:  # Ctrl-C, too
            temporary.unlink(missing_ok=True)
            raise


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def os_errors_explained(path: Path, same_command: str = RESUMES) -> Iterator[None]:
    """Turn an operating system's error while writing `path` into an `ArtifactError`.

    `same_command` says what happens when the user runs the command again.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise ArtifactError(
            "the disk is full" if full else f"cannot write: {error.strerror or error}",
            where=str(path),
            fix="free some space" * full
            + "check the directory and its permissions" * (not full)
            + f", then run the same command: {same_command}",
        ) from error


def sync_directory(path: Path) -> None:
    """Sync a directory's renames to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
