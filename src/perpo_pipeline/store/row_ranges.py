"""Some rows of a Parquet file, without the others in memory: images in a file have any size."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_AT_ONCE = 16  # of which one may be an image of megabytes
BUFFER_BYTES = 1 << 20


def open_parquet(part: Path, rows: range | None) -> pq.ParquetFile:
    """Open a file to read all of it, or `rows` alone; raises what pyarrow and the system raise."""
    return pq.ParquetFile(part, buffer_size=0 if rows is None else BUFFER_BYTES)


def read_columns(
    file: pq.ParquetFile, columns: Sequence[str] | None, rows: range | None
) -> pa.Table:
    """Columns of all rows, or of `rows`: those before them are decoded and let go of."""
    names = None if columns is None else list(columns)
    if rows is None:
        return file.read(columns=names)
    found, start = [], 0
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=names, use_threads=False):
        if start >= rows.stop:
            break
        first = max(rows.start - start, 0)
        if (number := min(rows.stop - start, batch.num_rows) - first) > 0:
            found.append(batch.slice(first, number))
        start += batch.num_rows
    schema = file.schema_arrow
    wanted = schema if names is None else pa.schema([schema.field(name) for name in names])
    return pa.Table.from_batches(found, found[0].schema if found else wanted)
