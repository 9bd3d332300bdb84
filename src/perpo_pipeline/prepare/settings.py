"""The flags of `perpo prepare` as settings of one split's source."""

from pathlib import Path
from typing import Any

from perpo_pipeline.config.sources import SOURCE_NAMES
from perpo_pipeline.errors import ConfigError

_BY_SUFFIX = {".jsonl": "jsonl", ".parquet": "lmms-lab"}  # the likeliest layout


def source_settings(
    split: str | None,
    *,
    source: str | None,
    path: Path | None,
    datasets: str | None,
    splits: str | None,
    split_by: str | None,
    keep_evaluated: bool,
    **plain: Any,
) -> dict[tuple[str, ...], Any]:
    """Settings of the split: a whole source where one is named, else the values given.

    Lists are given with commas, `split_by` as DATASET=NAME. Raises `ConfigError` for an unknown
    source, and for flags without a split that they could belong to.
    """
    if source is not None and source not in SOURCE_NAMES:
        raise ConfigError(f"there is no source '{source}'", fix=_fix_of_source(source))
    given = {
        **plain,
        "path": path,
        "datasets": datasets and datasets.split(","),
        "splits": splits and splits.split(","),
        "split_by": split_by and _pairs(split_by),
        "leave_out_evaluated": False if keep_evaluated else None,
    }
    values = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in given.items()
        if value is not None
    }
    if source is not None:
        return {("prepare", str(split)): {"source": source, **values}}
    if values and split is None:
        names = (n.replace("_", "-").replace("leave-out", "keep") for n in values)
        flags = ", ".join(f"--{name}" for name in names)
        raise ConfigError(f"{flags}: of one split", fix="choose it with --variant")
    return {("prepare", str(split), name): value for name, value in values.items()}


def _fix_of_source(source: str) -> str:
    """What to do about a word that is no source; often it is the path."""
    known = ", ".join(SOURCE_NAMES)
    if not (Path(source).exists() or "/" in source or Path(source).suffix):
        return f"choose one of {known}"
    layout = _BY_SUFFIX.get(Path(source).suffix)
    if layout is None:
        return f"give the source first: perpo prepare SOURCE {source}, with one of {known}"
    return f"give the source first: perpo prepare {layout} {source}"


def _pairs(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(equals for _, equals, _ in pairs):
        raise ConfigError(f"--split-by is {text!r}", fix="give DATASET=NAME, e.g. refcocog=google")
    return {dataset: name for dataset, _, name in pairs}
