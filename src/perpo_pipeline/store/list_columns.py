"""Columns of lists: their lengths, and lists with one more value each, without a loop over rows."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Places = npt.NDArray[np.int64]


def lengths_of(lists: pa.Array) -> Places:
    """How many values each list has, `(L,)`; 0 for null."""
    found = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    return np.asarray(found, dtype=np.int64)


def starts_of(lengths: Places) -> Places:
    """Where each of L lists begins in all values one after the other, and the end: `(L + 1,)`."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def list_column(starts: Places, values: pa.Array) -> pa.ListArray:
    """The column whose list i has the values from `starts[i]` to `starts[i + 1]`."""
    return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), values)


def insert(lists: pa.Array, values: pa.Array, into: Places, places: Places) -> pa.ListArray:
    """`lists` with `values[i]` in list `into[i]`, where it is at `places[i]` from 0.

    `values`, `into` and `places` are `(V,)`, at most one for each list, of the lists' own type; the
    other values stay in their order. A null list is an empty one.
    """
    old = lists.flatten()
    starts = starts_of(lengths_of(lists) + np.bincount(into, minlength=len(lists)))
    order = np.full(starts[-1], -1, np.int64)
    order[starts[into] + places] = np.arange(len(values)) + len(old)
    order[order < 0] = np.arange(len(old))
    return list_column(starts, pa.concat_arrays([old, values]).take(pa.array(order)))
