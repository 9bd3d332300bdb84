"""Lists with one more value each, by hand."""

import numpy as np
import pyarrow as pa

from perpo_pipeline.store.list_columns import insert, lengths_of


def test_values_go_to_their_places_and_the_others_stay_in_order() -> None:
    lists = pa.array([["x"], ["a", "b"], None, ["c"], []], pa.list_(pa.string())).slice(1)
    assert lengths_of(lists).tolist() == [2, 0, 1, 0]
    found = insert(lists, pa.array(["A", "N", "C"]), np.array([0, 1, 2]), np.array([1, 0, 1]))
    assert found.to_pylist() == [["a", "A", "b"], ["N"], ["c", "C"], []]
