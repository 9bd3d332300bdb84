"""The Parquet files that a setting names: a file, a folder of them, or a pattern with *."""

from pathlib import Path


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files that a file, a folder or a pattern with * names, sorted by name."""
    if path.is_dir():
        return sorted(path.rglob("*.parquet"))
    if "*" not in str(path):
        return [path]
    fixed = fixed_folder(path)
    return sorted(fixed.glob(str(path.relative_to(fixed))))


def fixed_folder(pattern: Path) -> Path:
    """The folder of a pattern before its first *."""
    return next(parent for parent in pattern.parents if "*" not in str(parent))
