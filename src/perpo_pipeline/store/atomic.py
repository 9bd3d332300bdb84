"""Files that are whole or not there: write, fsync, rename."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from perpo_pipeline.errors import ArtifactError


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call `write` with a file that takes the place of `path` only when it is whole and on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with os_errors_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as sink:
                write(sink)
                sink.flush()
                os.fsync(sink.fileno())
            os.replace(temporary, path)
            sync_directory(path.parent)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def os_errors_explained(
    path: Path, same_command: str = "it goes on after the last whole part"
) -> Iterator[None]:
    """Turn what the operating system refuses while writing `path` into one clear error.

    `same_command` says what the command does when it is run again.
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
    """Put a directory's renames on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
