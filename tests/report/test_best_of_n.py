from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpo_pipeline.errors import InputError
from perpo_pipeline.report.best_of_n import expected_best_of_n


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7).flatmap(
    lambda size: st.lists(st.lists(st.floats(0, 1), min_size=size, max_size=size), min_size=1,
                          max_size=4)))  # fmt: skip
def test_it_is_the_mean_of_the_maximum_over_every_subset(lists):
    size = len(lists[0])
    by_enumeration = [
        np.mean([max(subset) for values in lists for subset in combinations(values, n)])
        for n in range(1, size + 1)
    ]
    assert expected_best_of_n(lists) == pytest.approx(by_enumeration, abs=1e-12)


def test_one_right_answer_of_four_is_found_in_n_quarters_of_the_draws():
    assert expected_best_of_n([[0, 0, 1, 0]]) == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_lists_count_alike():
    assert expected_best_of_n([[0, 1], [0, 0]]) == pytest.approx([0.25, 0.5])


def test_large_lists_do_not_lose_precision():
    values = np.zeros((1, 400))
    values[0, 7] = 1
    assert expected_best_of_n(values) == pytest.approx(np.arange(1, 401) / 400, abs=1e-12)


@pytest.mark.parametrize("values", [[], [[]], [0.5, 1.0]])
def test_what_is_no_matrix_of_lists_is_refused(values):
    with pytest.raises(InputError, match="shape"):
        expected_best_of_n(values)
