"""The folder of `perpo sweep --figures`: what in it perpo has written, and so may write again.

A call looks here before it makes anything, so that hours later nothing is lost and nothing fails.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from perpo_pipeline.errors import ConfigError, what_to_check
from perpo_pipeline.sweep.file import SweepFile

INDEX = "README.md"
SECTION = re.compile(r"^<!-- sweep (\S+) -->$", re.MULTILINE)  # before each section of the page
OF_RUN = re.compile(r"^Sweep `\S+` of the run `([^`]+)`:", re.MULTILINE)  # within a section
MARK = "# Figures\n\nMade from sweeps by `perpo sweep --figures`"
"""How every page begins that perpo has written."""
PICTURE_MARK = b"var(--paper)"  # of a picture for light and dark pages (report/page/svg.py)
HEAD_BYTES = 4096  # of a picture: its mark is there
METHOD = "method"  # what stands for the parameter where a sweep has none

Planned = tuple[SweepFile, str]
"""The file of a sweep, and the name of its run."""


def check_folder(folder: Path, sweeps: Iterable[Planned]) -> None:
    """Raise `ConfigError` if the figures of these sweeps cannot be written to `folder`.

    So it is where no folder can be or nothing may be written, where a file would be lost that perpo
    did not write, and where a sweep would replace the pictures or the section of another one: one
    of this call, or one of another run that the page has already.
    """
    _check_place(folder)
    sections = sections_of(folder / INDEX)
    writers: dict[str, Planned] = {}
    for file, run in sweeps:
        for name in picture_names(file):
            other, other_run = writers.setdefault(name, (file, run))
            if other is not file:
                raise ConfigError(
                    f"--figures {folder}: {name} would be a picture of the sweep '{file.sweep}' of "
                    f"the run {run} and of '{other.sweep}' of the run {other_run}",
                    fix="name one of them in a call of its own, with another folder",
                )
            if (folder / name).exists() and not _is_picture(folder / name):
                raise _would_be_lost(folder, name)
        before = OF_RUN.findall(sections.get(file.sweep, ""))
        if before and before[-1] != run:
            raise ConfigError(
                f"--figures {folder}: {INDEX} has the section '{file.sweep}' of the run "
                f"{before[-1]}, which that of the run {run} would replace",
                fix="name another folder, or give one of the two sweeps another name",
            )


def picture_names(file: SweepFile) -> list[str]:
    """The names that the pictures of a sweep may have: which of them, its rows decide."""
    keys = dict.fromkeys(name for names in file.together() for name in names)
    several = [picture_name(file, key, is_only=False) for key in keys] if len(keys) > 1 else []
    return [picture_name(file, METHOD, is_only=True), *several]


def picture_name(file: SweepFile, key: str, *, is_only: bool) -> str:
    """The name of the picture of one parameter."""
    return f"{file.sweep}.svg" if is_only else f"{file.sweep}-{key}.svg"


def sections_of(page: Path) -> dict[str, str]:
    """The sections of a page by the names of their sweeps, in their order; none without a page.

    Raises `ConfigError` for a page with text that perpo has not written before its first section.
    """
    if not page.exists():
        return {}
    try:
        first, *found = SECTION.split(page.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise _would_be_lost(page.parent, page.name) from None
    except OSError as error:
        what = f"--figures {page.parent}: {page.name} cannot be read: {error.strerror or error}"
        raise ConfigError(what, fix=what_to_check(error)) from error
    if first.strip() and not first.startswith(MARK):
        raise _would_be_lost(page.parent, page.name)
    return {name: text.strip() for name, text in zip(found[::2], found[1::2], strict=True)}


def _check_place(folder: Path) -> None:
    """Raise `ConfigError` unless this is a folder to write to, or one can be made there."""
    place = folder.absolute()
    nearest = next(one for one in (place, *place.parents) if os.path.lexists(one))
    if not nearest.is_dir():
        where = "this" if nearest == place else str(nearest)
        raise ConfigError(f"--figures {folder}: {where} is no folder", fix="name a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(
            f"--figures {folder}: nothing may be written to {nearest}",
            fix="name another folder, or change its permissions",
        )


def _is_picture(file: Path) -> bool:
    """Whether perpo has drawn it."""
    try:
        with file.open("rb") as stream:
            return PICTURE_MARK in stream.read(HEAD_BYTES)
    except OSError:
        return False


def _would_be_lost(folder: Path, name: str) -> ConfigError:
    return ConfigError(
        f"--figures {folder}: its {name} was not written by perpo sweep, and would be lost",
        fix=f"name another folder, or move {name} away",
    )
