"""The rewards of an answer with several boxes: how well they match the true ones.

`set_ious` and `detection_f1s` match boxes one to one, so a box that is given twice counts as a
spare one. They differ in what a matched pair is worth: its IoU, or 1 if the IoU reaches a
threshold. `box_counts` looks at the numbers of boxes alone.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from perpo_pipeline.rewards.grounding import iou_xyxy

Floats = npt.NDArray[np.float64]
Boxes = Sequence[npt.ArrayLike]

COCO_THRESHOLDS = tuple(np.arange(50, 100, 5) / 100)
"""COCO's IoU thresholds: 0.5, 0.55, ..., 0.95."""
PAIRS_AT_ONCE = 1 << 20  # of boxes, in memory


def set_ious(pred: Boxes, gt: Boxes) -> Floats:
    """The mean IoU of the best matching between predicted and true boxes, set by set, in [0, 1].

    `pred` has n arrays `(k, 4)`, `gt` n arrays `(m, 4)`, xyxy in one unit; the result is `(n,)`,
    float64. Each box is matched with at most one of the other set such that the sum of their IoUs
    is largest; that sum is divided by max(k, m), so a missing and a spare box count as IoU 0. A box
    that `iou_xyxy` does not accept (NaN, inverted) counts in k or m and overlaps nothing. Two
    empty sets give 1 (no object, and no box in the answer), one empty set gives 0. Raises
    ValueError for other shapes. The measure is ours; scipy finds the matching.
    """
    return _each(pred, gt, lambda table: _matched(table) / max(table.shape))


def detection_f1s(pred: Boxes, gt: Boxes, thresholds: Sequence[float] = (0.5,)) -> Floats:
    """The mean F1 of the predicted boxes over IoU thresholds, set by set, in [0, 1]; `(n,)`.

    At one threshold TP is the largest number of pairs, one to one, whose IoU is at least the
    threshold, and F1 is 2 TP / (k + m): a spare, a missing and a doubled box lower it alike.
    Arguments, boxes that are none, empty sets and errors as in `set_ious`.
    """

    def mean_f1(table: Floats) -> float:
        hits = [_matched((table >= t).astype(np.float64)) for t in thresholds]
        return 2.0 * float(np.mean(hits)) / sum(table.shape)

    return _each(pred, gt, mean_f1)


def mean_detection_f1s(pred: Boxes, gt: Boxes) -> Floats:
    """`detection_f1s` averaged over `COCO_THRESHOLDS`."""
    return detection_f1s(pred, gt, COCO_THRESHOLDS)


def box_counts(pred: Boxes, gt: Boxes) -> Floats:
    """min(k, m) / max(k, m) for k predicted and m true boxes, set by set, in [0, 1]; `(n,)`.

    1 if the number of boxes is right; where they are does not matter. Two empty sets give 1, one
    empty set gives 0. Arguments and errors as in `set_ious`. Ours.
    """
    _check_numbers(pred, gt)
    sizes = np.array(
        [[len(_as_set(one, name)) for one in side] for name, side in (("pred", pred), ("gt", gt))]
    )
    few, many = sizes.min(axis=0).astype(np.float64), sizes.max(axis=0)
    return np.asarray(np.divide(few, many, out=np.ones_like(few), where=many > 0))


def _each(pred: Boxes, gt: Boxes, measure: Callable[[Floats], float]) -> Floats:
    """`measure` of each pair of sets that are not empty, from the table of their IoUs."""
    _check_numbers(pred, gt)
    boxes, truths = [_as_set(one, "pred") for one in pred], [_as_set(one, "gt") for one in gt]
    found = [
        min(measure(table), 1.0) if table.size else float(table.shape == (0, 0))
        for table in _pairwise_ious(boxes, truths)
    ]
    return np.array(found, dtype=np.float64)


def _check_numbers(pred: Boxes, gt: Boxes) -> None:
    if len(pred) != len(gt):
        raise ValueError(f"pred has {len(pred)} sets of boxes, gt has {len(gt)}")


def _as_set(boxes: npt.ArrayLike, name: str) -> Floats:
    array = np.asarray(boxes, dtype=np.float64)
    if not array.size:
        return np.empty((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"the sets of {name} must have the shape (k, 4), not {array.shape}")
    return array


def _pairwise_ious(boxes: list[Floats], truths: list[Floats]) -> Iterator[Floats]:
    """The IoUs of all pairs of boxes for each pair of sets, `(k, m)`, many of them in one call."""
    shapes = [(len(a), len(b)) for a, b in zip(boxes, truths, strict=True)]
    ends = np.cumsum([k * m for k, m in shapes])
    start = 0
    while start < len(shapes):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + PAIRS_AT_ONCE, "right")), start + 1)
        yield from _tables(boxes[start:stop], truths[start:stop], shapes[start:stop])
        start = stop


def _tables(
    boxes: list[Floats], truths: list[Floats], shapes: list[tuple[int, int]]
) -> Iterator[Floats]:
    left = [np.repeat(a, m, axis=0) for a, (_, m) in zip(boxes, shapes, strict=True)]
    right = [np.tile(b, (k, 1)) for b, (k, _) in zip(truths, shapes, strict=True)]
    ious = iou_xyxy(np.concatenate(left), np.concatenate(right))
    start = 0
    for k, m in shapes:
        yield ious[start : start + k * m].reshape(k, m)
        start += k * m


def _matched(table: Floats) -> float:
    """The largest sum over a one-to-one matching of rows and columns."""
    if 1 in table.shape:  # one pair: scipy takes as long for it as for many
        return float(table.max())
    from scipy.optimize import linear_sum_assignment  # takes half a second to import

    return float(table[linear_sum_assignment(table, maximize=True)].sum())
