"""What the best of n samples is worth: the room that training can use."""

from math import comb

import numpy as np
import numpy.typing as npt

from perpo_pipeline.errors import InputError

Floats = npt.NDArray[np.float64]


def expected_best_of_n(values: npt.ArrayLike) -> Floats:
    """Expected maximum of n of the N values of each list, for n = 1..N, as the mean over lists.

    `values` is `(lists, N)`; the result `(N,)`. It is the exact mean over all subsets of n without
    repetition, so unbiased for n independent draws: with r_(1) <= ... <= r_(N) it is
    sum_i C(i - 1, n - 1) / C(N, n) * r_(i); for 0/1 values this is pass@k (Chen et al. 2021,
    arXiv:2107.03374, eq. 1). Raises `InputError` for other shapes.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise InputError(f"the values of lists must have the shape (lists, N), not {array.shape}")
    return np.asarray(np.sort(array, axis=1).mean(axis=0) @ _weights(array.shape[1]).T)


def _weights(size: int) -> Floats:
    """weights[n - 1, i - 1] = P(the i-th smallest of `size` values is the largest of n drawn)."""
    ranks = range(1, size + 1)
    return np.array([[comb(i - 1, n - 1) / comb(size, n) for i in ranks] for n in ranks])
