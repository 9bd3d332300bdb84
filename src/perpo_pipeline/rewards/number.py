"""The rewards of a counting or measuring answer: whether its number is right, and how close."""

import numpy as np
import numpy.typing as npt


def count_matches(pred: npt.ArrayLike, gt: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """1 where the number answered is exactly the true count, else 0.

    `pred` and `gt` are `(n,)`, as is the result, float64. A number that is NaN (an unparsed
    answer) or infinite matches nothing. Raises ValueError for other shapes. Ours.
    """
    numbers, truths = _as_numbers(pred, gt)
    return np.where(np.isfinite(numbers) & (numbers == truths), 1.0, 0.0)


def numeric_closeness(pred: npt.ArrayLike, gt: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """1 - |pred - gt| / max(|pred|, |gt|), in [0, 1]; 1 for two zeros, 0 for different signs.

    `pred` and `gt` are `(n,)`, as is the result, float64. It is the smaller number divided by the
    larger: half and double the truth both give 0.5. A number that is NaN (an unparsed answer) or
    infinite gives 0. Raises ValueError for other shapes. Ours.
    """
    numbers, truths = _as_numbers(pred, gt)
    larger = np.maximum(np.abs(numbers), np.abs(truths))
    smaller = np.minimum(np.abs(numbers), np.abs(truths))
    is_like = np.isfinite(larger) & (np.sign(numbers) == np.sign(truths))
    ratio = np.divide(smaller, larger, out=np.ones_like(larger), where=is_like & (larger > 0))
    return np.where(is_like, ratio, 0.0)


def _as_numbers(
    pred: npt.ArrayLike, gt: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    numbers, truths = np.asarray(pred, dtype=np.float64), np.asarray(gt, dtype=np.float64)
    if numbers.ndim != 1 or numbers.shape != truths.shape:
        raise ValueError(
            f"pred has the shape {numbers.shape}, gt {truths.shape}; both must be (n,)"
        )
    return numbers, truths
