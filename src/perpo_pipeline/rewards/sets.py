"""The reward of an answer with several boxes: how well they match the true ones."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from perpo_pipeline.rewards.grounding import iou_xyxy


def set_ious(pred: Sequence[npt.ArrayLike], gt: Sequence[npt.ArrayLike]) -> npt.NDArray[np.float64]:
    """The mean IoU of the best matching between predicted and true boxes, set by set, in [0, 1].

    `pred` has n arrays `(k, 4)`, `gt` n arrays `(m, 4)`, xyxy in one unit; the result is `(n,)`,
    float64. Each box is matched with at most one of the other set such that the sum of their IoUs
    is largest; that sum is divided by max(k, m), so a missing and a spare box count as IoU 0. A box
    that `iou_xyxy` does not accept (NaN, inverted) counts in k or m and overlaps nothing. Two
    empty sets give 1 (no object, and no box in the answer), one empty set gives 0. Raises
    ValueError for other shapes. The measure is ours; scipy finds the matching.
    """
    if len(pred) != len(gt):
        raise ValueError(f"pred has {len(pred)} sets of boxes, gt has {len(gt)}")
    boxes, truths = [_as_set(one, "pred") for one in pred], [_as_set(one, "gt") for one in gt]
    tables = _pairwise_ious(boxes, truths)
    return np.array([_matched(table) for table in tables], dtype=np.float64)


def _as_set(boxes: npt.ArrayLike, name: str) -> npt.NDArray[np.float64]:
    array = np.asarray(boxes, dtype=np.float64)
    if not array.size:
        return np.empty((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"the sets of {name} must have the shape (k, 4), not {array.shape}")
    return array


def _pairwise_ious(
    boxes: list[npt.NDArray[np.float64]], truths: list[npt.NDArray[np.float64]]
) -> Iterator[npt.NDArray[np.float64]]:
    """The IoUs of all pairs of boxes for each pair of sets, `(k, m)`, computed in one call."""
    shapes = [(len(a), len(b)) for a, b in zip(boxes, truths, strict=True)]
    nothing = [np.empty((0, 4))]
    left = [np.repeat(a, m, axis=0) for a, (_, m) in zip(boxes, shapes, strict=True)]
    right = [np.tile(b, (k, 1)) for b, (k, _) in zip(truths, shapes, strict=True)]
    ious = iou_xyxy(np.concatenate(left + nothing), np.concatenate(right + nothing))
    start = 0
    for k, m in shapes:
        yield ious[start : start + k * m].reshape(k, m)
        start += k * m


def _matched(table: npt.NDArray[np.float64]) -> float:
    """The largest sum of IoUs, divided by the number of boxes in the larger set."""
    if not table.size:
        return float(table.shape == (0, 0))
    from scipy.optimize import linear_sum_assignment  # takes half a second to import

    total = table[linear_sum_assignment(table, maximize=True)].sum()
    return float(min(total / max(table.shape), 1.0))
