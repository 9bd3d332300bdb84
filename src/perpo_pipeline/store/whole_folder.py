"""Folders for users that are either whole or absent: written beside their place, then moved there.

A process that is killed leaves `.NAME.part` beside the place, which the next one removes.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store.atomic import sync_directory


def part_of(out: Path) -> Path:
    """Where `out` is written before it is moved to its place."""
    return out.with_name(f".{out.name}.part")


@contextmanager
def locked(out: Path) -> Iterator[Path]:
    """The folder beside `out` to write in; only one process at a time gets it."""
    part = part_of(out)
    part.mkdir(parents=True, exist_ok=True)
    with (part / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(
                "another process is writing there", where=str(out), fix="wait until it ends"
            ) from None
        yield part


@contextmanager
def replacing(out: Path, settle: Callable[[Path], None]) -> Iterator[Path]:
    """A new folder that is moved to `out` at the end, once `settle` has put its files on disk.

    An `out` that is not an empty folder is never replaced: the operating system refuses.
    """
    with locked(out) as part:
        folder = part / "whole"
        shutil.rmtree(folder, ignore_errors=True)  # left by a killed process
        try:
            folder.mkdir()
            yield folder
            settle(folder)
            os.replace(folder, out)
            sync_directory(out.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)
