"""The flags of `perpo prepare` as settings of one split's source."""

from pathlib import Path
from typing import Any

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.prepare.sources import SOURCE_NAMES


def source_settings(
    split: str | None, *, source: str | None, path: Path | None, datasets: str | None,
    splits: str | None, split_by: str | None, keep_evaluated: bool, **plain: Any,
) -> dict[tuple[str, ...], Any]:  # fmt: skip
    """Settings of the split: a whole source where one is named, else the values given.

    Lists are given with commas, `split_by` as DATASET=NAME. Raises `ConfigError` for an unknown
    source, and for flags without a split that they could belong to.
    """
    if source is not None and source not in SOURCE_NAMES:
        is_path = Path(source).exists()
        raise ConfigError(
            f"there is no source '{source}'",
            fix=f"name the layout first: perpo prepare jsonl {source}" if is_path
            else f"choose one of {', '.join(SOURCE_NAMES)}",
        )  # fmt: skip
    given = {
        **plain,
        "path": path,
        "datasets": datasets and datasets.split(","),
        "splits": splits and splits.split(","),
        "split_by": split_by and _pairs(split_by),
        "leave_out_evaluated": False if keep_evaluated else None,
    }
    values = {name: str(value) if isinstance(value, Path) else value
              for name, value in given.items() if value is not None}  # fmt: skip
    if source is not None:
        return {("prepare", str(split)): {"source": source, **values}}
    if values and split is None:
        names = (n.replace("_", "-").replace("leave-out", "keep") for n in values)
        flags = ", ".join(f"--{name}" for name in names)
        raise ConfigError(f"{flags}: of one split", fix="choose it with --variant")
    return {("prepare", str(split), name): value for name, value in values.items()}


def _pairs(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(equals for _, equals, _ in pairs):
        raise ConfigError(f"--split-by is {text!r}", fix="give DATASET=NAME, e.g. refcocog=google")
    return {dataset: name for dataset, _, name in pairs}
