"""The tables of slices: each value is a row of its own, whatever it is called."""

from types import SimpleNamespace
from typing import Any

from perpo_pipeline.report.methods import ReportedMethod
from perpo_pipeline.report.page.slices import slice_tables
from perpo_pipeline.report.results import MethodResults, _slices

BASE = ReportedMethod("base", "Base", "#000000", "base", ("base",))


def tables(*rows: tuple[str | None, str | None, str, float]) -> list[dict[str, Any]]:
    """The tables of METRICS rows: (slice_column, slice_value, dataset, AP@50)."""
    names = ("slice_column", "slice_value", "dataset", "value")
    made = [dict(zip(names, r, strict=True)) | {"name": "ap50", "low": 0, "high": 1} for r in rows]
    table = SimpleNamespace(to_pylist=lambda: [row | {"n": 9} for row in made])
    slices = _slices([SimpleNamespace(table=lambda: table)])  # type: ignore[list-item]
    results = MethodResults(BASE, dict.fromkeys(["ap50"]), {}, {}, slices)  # type: ignore[arg-type]
    contents = SimpleNamespace(test_sets=[SimpleNamespace(split="test", results=[results])])
    return slice_tables(contents)  # type: ignore[arg-type]


def values(table: dict[str, Any]) -> dict[str, str]:
    return {row["value"]: row["cells"][0]["value"] for row in table["rows"]}


def test_no_value_has_a_name_that_no_value_has() -> None:
    (table,) = tables(("c", "(none)", "c=(none)", 0.1), ("c", None, "c (none)", 0.2))
    assert values(table) == {"(none)": "10.0", "((none))": "20.0"}
    (table,) = tables(("c", "null", "c=null", 0.1), ("c", None, "c (none)", 0.2))
    assert values(table) == {"null": "10.0", "(none)": "20.0"}


def test_a_column_called_dataset_is_another_table_than_the_datasets() -> None:
    datasets, column = tables(
        (None, None, "all", 0.3),
        (None, None, "dogs", 0.1),
        ("dataset", "dogs", "dataset=dogs", 0.2),
    )
    assert (datasets["column"], values(datasets)) == ("dataset", {"dogs": "10.0"})
    assert (column["column"], values(column)) == (
        "dataset (column of the data)",
        {"dogs": "20.0"},
    )
