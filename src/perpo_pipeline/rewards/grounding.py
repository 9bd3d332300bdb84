"""The rewards of a grounding answer: overlap with the true box, or a point inside it."""

import numpy as np
import numpy.typing as npt


def iou_xyxy(pred: npt.ArrayLike, gt: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Intersection over union of predicted and true boxes, row by row, in [0, 1].

    Both are `(n, 4)` as x1, y1, x2, y2 in one unit (pixels of the original image, or any other);
    the result is `(n,)`, float64. A row that is not a box gives 0: NaN (an unparsed answer),
    infinite, or inverted (x1 > x2 or y1 > y2), in either array. So does a pair of empty boxes.
    Raises ValueError for other shapes. Source: the reward of PerPO 3.1, arXiv:2502.04371.
    """
    pred, gt = _as_boxes(pred, "pred"), _as_boxes(gt, "gt")
    if pred.shape != gt.shape:
        raise ValueError(f"pred has {len(pred)} boxes, gt has {len(gt)}")
    is_valid = _is_box(pred) & _is_box(gt)
    pred, gt = np.where(is_valid[:, None], pred, 0.0), np.where(is_valid[:, None], gt, 0.0)
    sides = np.minimum(pred[:, 2:], gt[:, 2:]) - np.maximum(pred[:, :2], gt[:, :2])
    intersection = np.prod(np.maximum(sides, 0.0), axis=1)
    union = _areas(pred) + _areas(gt) - intersection
    iou = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    return np.asarray(np.minimum(iou, 1.0))  # rounding can lift equal boxes above 1 by an ulp


def points_in_boxes(points: npt.ArrayLike, gt: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """1 where a point is inside the true box or on its edge, else 0.

    `points` is `(n, 2)` as x, y and `gt` `(n, 4)` as x1, y1, x2, y2, in one unit; the result is
    `(n,)`, float64. A point that is NaN (an unparsed answer) or infinite gives 0, and so does a box
    that `iou_xyxy` does not accept. Raises ValueError for other shapes. Source: pointing accuracy,
    as in ScreenSpot (SeeClick, arXiv:2401.10935).
    """
    xy, gt = np.asarray(points, dtype=np.float64), _as_boxes(gt, "gt")
    if xy.shape != (len(gt), 2):
        raise ValueError(f"points must have the shape ({len(gt)}, 2), not {xy.shape}")
    is_inside = (xy >= gt[:, :2]) & (xy <= gt[:, 2:])  # False for NaN
    return np.where(is_inside.all(axis=1) & _is_box(gt), 1.0, 0.0)


def _as_boxes(boxes: npt.ArrayLike, name: str) -> npt.NDArray[np.float64]:
    array = np.asarray(boxes, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"{name} must have the shape (n, 4), not {array.shape}")
    return array


def _is_box(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        is_ordered = (boxes[:, 0] <= boxes[:, 2]) & (boxes[:, 1] <= boxes[:, 3])
        is_finite = (np.abs(boxes) < 1e100).all(axis=1)  # beyond, areas overflow
    return np.asarray(is_finite & is_ordered)


def _areas(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
