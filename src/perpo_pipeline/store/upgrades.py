"""Tables of older schema versions are upgraded as they are read: one step per version and table.

Whoever raises the version of a table in schemas.py appends its step to `STEPS`, adds the golden
file of the new version and leaves those of the older ones (CONTRIBUTING.md). A step is a pure
function of a pyarrow table. Where an older version did not record something, its column is null,
also where today's schema has a value in every row: nothing is made up.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from perpo_pipeline.store.schemas import (
    BOX,
    FLOAT,
    IMAGE,
    IMAGE_FACTS,
    INT32,
    POINT,
    POLYGON,
    SIZE,
    STRING,
    TURNS,
    TableSchema,
)


@dataclass(frozen=True)
class Step:
    """From one schema version to the next; `reads` are the older columns that `upgrade` needs."""

    upgrade: Callable[[pa.Table], pa.Table]
    reads: tuple[str, ...] = ()


def _adds(column: str, kind: pa.DataType, value: object = None) -> Step:
    """A new column that has one value in every row; null: the older version did not record it."""

    def upgrade(table: pa.Table) -> pa.Table:
        values = pa.repeat(pa.scalar(value, kind), table.num_rows)
        return table.append_column(pa.field(column, kind, nullable=value is None), values)

    return Step(upgrade)


def _both(*steps: Step) -> Step:
    def upgrade(table: pa.Table) -> pa.Table:
        for step in steps:
            table = step.upgrade(table)
        return table

    return Step(upgrade, tuple(name for step in steps for name in step.reads))


# The first step of a table leads from version 1 to 2, the next from 2 to 3, and so on.
STEPS: dict[str, tuple[Step, ...]] = {
    "prompts": (
        _adds("image_notes", pa.list_(STRING), []),
        _both(_adds("gt_boxes", pa.list_(BOX)), _adds("gt_polygon", POLYGON)),
        _adds("place", STRING, ""),  # messages then name the prompt by its key alone
        _adds("gt_point", POINT),
        _adds("extra", STRING),
        _both(
            _adds("more_images", pa.list_(IMAGE)),
            _adds("more_image_facts", pa.list_(IMAGE_FACTS)),
            _adds("box_image", INT32),
            _adds("history", TURNS),
        ),
    ),
    "samples": (_adds("resized", SIZE),),
    "errors": (_adds("place", STRING, ""),),
    "dropped": (_adds("sample_id", INT32),),
    "adapter": (
        _adds("mfu", FLOAT),
        _both(_adds("tokens", INT32), _adds("peak_memory_gib", FLOAT)),
    ),
    "predictions": (_adds("resized", SIZE),),
    "metrics": (
        _adds("dataset", STRING, "all"),
        _both(_adds("slice_column", STRING), _adds("slice_value", STRING)),
    ),
    "report": (
        _both(_adds("p_value", FLOAT), _adds("test", STRING)),
        _adds("split", STRING),
    ),
}


def is_readable(schema: TableSchema, version: object) -> bool:
    """Whether steps lead from this version of a table to today's."""
    oldest = schema.version - len(STEPS.get(schema.name, ()))
    return isinstance(version, int) and oldest <= version <= schema.version


def columns_to_read(
    schema: TableSchema, version: int, columns: Sequence[str] | None, stored: Sequence[str]
) -> list[str] | None:
    """The columns of an older part from which `columns` of today's schema are made.

    `stored` are those of the part's file. None stands for all.
    """
    if columns is None:
        return None
    wanted = {*columns, *(name for step in _steps(schema, version) for name in step.reads)}
    return [name for name in stored if name in wanted]


def upgrade_table(
    table: pa.Table, schema: TableSchema, version: int, columns: Sequence[str] | None = None
) -> pa.Table:
    """A table of an older version as today's; with `columns`, these alone.

    The columns are in the order of today's schema. Prints once per command that it does so.
    """
    _announce(schema, version)
    for step in _steps(schema, version):
        table = step.upgrade(table)
    names = schema.columns.names if columns is None else columns
    return table.select([name for name in schema.columns.names if name in set(names)])


def _steps(schema: TableSchema, version: int) -> tuple[Step, ...]:
    steps = STEPS.get(schema.name, ())
    return steps[len(steps) - (schema.version - version) :] if version < schema.version else ()


_announced: set[tuple[str, int]] = set()


def _announce(schema: TableSchema, version: int) -> None:
    is_first_process = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
    if (schema.name, version) not in _announced and is_first_process:
        print(
            f"reads {schema.name} of schema version {version}, upgraded in memory to version "
            f"{schema.version}",
            file=sys.stderr,
            flush=True,
        )
    _announced.add((schema.name, version))


def forget_announced() -> None:
    """Begin a new command: what it upgrades is printed once more."""
    _announced.clear()
