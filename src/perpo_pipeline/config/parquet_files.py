"""The Parquet files that a setting names: a file, a folder of them, or a pattern with *."""

from pathlib import Path

from perpo_pipeline.errors import ConfigError


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files that a file, a folder or a pattern with * names, sorted by name.

    Raises `ConfigError` for a pattern that is none.
    """
    if path.is_dir():
        return sorted(path.rglob("*.parquet"))
    if "*" not in str(path):
        return [path]
    fixed = fixed_folder(path)
    try:
        return sorted(fixed.glob(str(path.relative_to(fixed))))
    except ValueError as error:
        raise ConfigError(
            f"this is no pattern: {error}",
            where=str(path),
            fix="write * for a part of a name; ** is a folder of its own: data/**/*.parquet",
        ) from None


def fixed_folder(pattern: Path) -> Path:
    """The folder of a pattern before its first *."""
    return next(parent for parent in pattern.parents if "*" not in str(parent))
