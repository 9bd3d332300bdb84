"""The Parquet files that a setting names: a file, a folder of them, or a pattern with *."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from perpo_pipeline.config.folders import files_below
from perpo_pipeline.errors import ConfigError


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files that a file, a folder or a pattern with * names, sorted by name.

    Raises `ConfigError` for a pattern that is none.
    """
    if path.is_dir():
        return sorted(file for file in files_below(path) if file.name.endswith(".parquet"))
    if "*" not in str(path):
        return [path]
    fixed = fixed_folder(path)
    pattern = path.relative_to(fixed)
    try:
        found = fixed.glob(str(pattern))
        if "**" not in pattern.parts:
            return sorted(found)
        next(found, None)  # raises
    except ValueError as error:
        raise ConfigError(
            f"this is no pattern: {error}",
            where=str(path),
            fix="write * for a part of a name; ** is a folder of its own: data/**/*.parquet",
        ) from None
    every = files_below(fixed)  # pathlib's own ** enters no link
    return sorted(f for f in every if _matches(f.relative_to(fixed).parts, pattern.parts))


def _matches(place: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether parts of a path match those of a pattern; ** is any number of folders."""
    if not pattern:
        return not place
    first, *rest = pattern
    if first == "**":
        return _matches(place, rest) or (bool(place) and _matches(place[1:], pattern))
    return bool(place) and fnmatchcase(place[0], first) and _matches(place[1:], rest)


def fixed_folder(pattern: Path) -> Path:
    """The folder of a pattern before its first *."""
    return next(parent for parent in pattern.parents if "*" not in str(parent))
