"""Folders with all that is below them, links to other folders included."""

import os
from collections.abc import Iterator
from pathlib import Path


def folders_below(top: Path) -> Iterator[tuple[Path, list[Path]]]:
    """The folder and each folder below it, with the files in it; none if it is no folder.

    A link to a folder elsewhere is entered, as if the folder were there. One into `top` is not: its
    files are found at their own place. Nor is one to a folder that holds `top`, or a folder that is
    being walked through: it would lead round in a circle. What may not be read is passed over.
    """
    if top.is_dir():
        yield from _walk(top, (top.resolve(),))


def files_below(top: Path) -> list[Path]:
    """All files of `folders_below`, in no order."""
    return [file for _, files in folders_below(top) for file in files]


def _walk(folder: Path, entered: tuple[Path, ...]) -> Iterator[tuple[Path, list[Path]]]:
    """As `folders_below`; `entered` are the real places of the top and of the links on the way."""
    try:
        with os.scandir(folder) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
    except PermissionError:
        return
    folders = {entry.name: folder / entry.name for entry in inside if _is_folder(entry)}
    yield folder, [folder / entry.name for entry in inside if entry.name not in folders]
    for entry in folders.values():
        if not entry.is_symlink():
            yield from _walk(entry, entered)
            continue
        real = entry.resolve()
        if not any(real.is_relative_to(one) or one.is_relative_to(real) for one in entered):
            yield from _walk(entry, (*entered, real))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere
        return False
