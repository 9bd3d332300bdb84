"""Slices: the prompts that have the same value in an extra column of the data (`eval.by`).

The value of a row is its text, or the JSON of any other value. Rows without the column, or with
null in it, are a slice of their own.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import polars as pl

from perpo_pipeline import advice
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.evaluate.metric import Bools
from perpo_pipeline.run import Run

EXTRA = "extra"
MOST_SLICES = 100
NO_VALUE = "(none)"
"""How the slice of the rows without a value is called, beside its column."""
NO_SLICE: Mapping[str, None] = {"slice_column": None, "slice_value": None}


def slice_values(extra: pl.Series, column: str) -> pl.Series | None:
    """The value of each row in a column of `extra`, `(n,)`, null for none.

    None if no row has the column.
    """
    found = [None if text is None else json.loads(text) for text in extra]
    if not any(column in columns for columns in found if columns):
        return None
    values = [_text((columns or {}).get(column)) for columns in found]
    return pl.Series(column, values, dtype=pl.String)


def sorted_slices(values: pl.Series) -> list[str | None]:
    """The different values, sorted; null is the last."""
    return values.unique().sort(nulls_last=True).to_list()


def is_slice(values: pl.Series, value: str | None) -> Bools:
    """Which rows are in the slice of a value, `(n,)`."""
    found = values.is_null() if value is None else (values == value).fill_null(False)
    return cast(Bools, found.to_numpy())


def slice_names(split: str, column: str, value: str | None) -> dict[str, Any]:
    """The columns of a METRICS row that name a slice."""
    shown = f"{column} {NO_VALUE}" if value is None else f"{column}={value}"
    return {"split": split, "dataset": shown, "slice_column": column, "slice_value": value}


def check_slices(run: Run, splits: Sequence[str]) -> None:
    """Before anything is decoded: raise `ConfigError` for columns of eval.by that make no slices.

    A column must be in one of the splits at least; a split without it is named. It may have 100
    values: slices are for categories, not for numbers.
    """
    by = run.config.eval.by
    if not by:
        return
    extras = {s: run.latest("prompts", s).table(columns=[EXTRA])[EXTRA] for s in splits}
    for column in by:
        found = {s: slice_values(pl.Series(extra), column) for s, extra in extras.items()}
        if all(values is None for values in found.values()):
            raise ConfigError(
                f"eval.by: the prompts have no column {column!r}; {_columns(extras)}",
                fix=f"name one of the other columns of your data ({advice.page('data')})",
            )
        for split, values in found.items():
            if values is None:
                run.say(f"eval: the prompts of {split} have no column {column!r}, so no slices")
            elif values.n_unique() > MOST_SLICES:
                raise ConfigError(
                    f"eval.by: {column!r} has {values.n_unique()} values in {split}, more than "
                    f"{MOST_SLICES} slices",
                    fix="name a column of categories, or put numbers into classes in your data",
                )


def _columns(extras: dict[str, Any]) -> str:
    """The columns that there are, for a message."""
    texts = (text for extra in extras.values() for text in extra.to_pylist() if text is not None)
    names = dict.fromkeys(name for text in texts for name in json.loads(text))
    return f"they have {', '.join(map(repr, names))}" if names else "they have no other columns"


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
