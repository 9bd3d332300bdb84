"""The Parquet files that a setting names: a file, a folder of them, or a pattern with *."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from perpo_pipeline.config.folders import files_below
from perpo_pipeline.errors import ConfigError


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files that a file, a folder or a pattern with * names, sorted by name.

    Hidden ones (`.name`, also those in hidden folders) are left out, unless the pattern names them.
    Raises `ConfigError` for a pattern that is none.
    """
    if path.is_dir():
        return _matching(path, ("**", "*.parquet"))
    if "*" not in str(path):
        return [path]
    fixed = fixed_folder(path)
    pattern = path.relative_to(fixed)
    try:
        found = fixed.glob(str(pattern))
        if "**" not in pattern.parts:
            return sorted(f for f in found if _matches(f.relative_to(fixed).parts, pattern.parts))
        next(found, None)  # raises
    except ValueError as error:
        raise ConfigError(
            f"this is no pattern: {error}",
            where=str(path),
            fix="write * for a part of a name; ** is a folder of its own: data/**/*.parquet",
        ) from None
    return _matching(fixed, pattern.parts)  # pathlib's own ** enters no link


def _matching(folder: Path, pattern: Sequence[str]) -> list[Path]:
    """The files below a folder whose paths in it match."""
    return sorted(f for f in files_below(folder) if _matches(f.relative_to(folder).parts, pattern))


def _matches(place: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether parts of a path match those of a pattern; ** is any number of folders.

    Neither ** nor * begins with the dot of a hidden name.
    """
    if not pattern:
        return not place
    first, *rest = pattern
    is_hidden = bool(place) and place[0].startswith(".") and not first.startswith(".")
    if first == "**":
        goes_on = bool(place) and not is_hidden
        return _matches(place, rest) or (goes_on and _matches(place[1:], pattern))
    fits = bool(place) and not is_hidden and fnmatchcase(place[0], first)
    return fits and _matches(place[1:], rest)


def fixed_folder(pattern: Path) -> Path:
    """The folder of a pattern before its first *."""
    return next(parent for parent in pattern.parents if "*" not in str(parent))
