"""The rewards of a grounding answer: overlap with the true box, or where a point is."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

STEPS = (0.5, 0.75)
"""Vision-R1's thresholds in the first half of its training (arXiv:2503.18013, 3.3)."""
STRICT_STEPS = (0.75, 0.9)
"""Those of the second half."""
SPREAD = 0.5
"""The standard deviation of GUI-G2's reward, as a share of the box's sides."""


def iou_xyxy(pred: npt.ArrayLike, gt: npt.ArrayLike) -> Floats:
    """Intersection over union of predicted and true boxes, row by row, in [0, 1].

    Both are `(n, 4)` as x1, y1, x2, y2 in one unit (pixels of the original image, or any other);
    the result is `(n,)`, float64. A row that is not a box gives 0: NaN (an unparsed answer),
    infinite, or inverted (x1 > x2 or y1 > y2), in either array. So does a pair of empty boxes.
    Raises ValueError for other shapes. Source: the reward of PerPO 3.1, arXiv:2502.04371.
    """
    pred, gt, _ = _pairs(pred, gt)
    return _ious(pred, gt)[0]


def giou_xyxy(pred: npt.ArrayLike, gt: npt.ArrayLike) -> Floats:
    """(1 + GIoU) / 2 of predicted and true boxes, row by row, in [0, 1].

    GIoU is IoU - (hull - union) / hull, where the hull is the smallest box around both: it is in
    [-1, 1], and lower the farther apart two boxes are that do not overlap. 1 for equal boxes, 0.5
    for boxes that only touch and fill their hull, towards 0 with the distance. Rows that are no box
    and pairs of empty boxes give 0, as in `iou_xyxy`; so do its shapes and errors. Source:
    Rezatofighi et al. 2019, arXiv:1902.09630, mapped to [0, 1].
    """
    pred, gt, is_valid = _pairs(pred, gt)
    iou, union = _ious(pred, gt)
    hull = np.prod(np.maximum(pred[:, 2:], gt[:, 2:]) - np.minimum(pred[:, :2], gt[:, :2]), axis=1)
    outside = np.divide(hull - union, hull, out=np.zeros_like(hull), where=hull > 0)
    rewards = np.where(is_valid & (union > 0), (1.0 + iou - outside) / 2.0, 0.0)
    return np.clip(rewards, 0.0, 1.0)


def stepped_ious(ious: npt.ArrayLike, thresholds: tuple[float, float] = STEPS) -> Floats:
    """0 below the lower threshold, 1 above the upper one, the IoU itself from one to the other.

    `ious` has any shape, as has the result, float64 in [0, 1]; it never falls where an IoU rises.
    Source: Vision-R1, arXiv:2503.18013, with its thresholds `STEPS`, then `STRICT_STEPS`.
    """
    values, (low, high) = np.asarray(ious, dtype=np.float64), thresholds
    return np.where(values < low, 0.0, np.where(values > high, 1.0, values))


def points_in_boxes(points: npt.ArrayLike, gt: npt.ArrayLike) -> Floats:
    """1 where a point is inside the true box or on its edge, else 0.

    `points` is `(n, 2)` as x, y and `gt` `(n, 4)` as x1, y1, x2, y2, in one unit; the result is
    `(n,)`, float64. A point that is NaN (an unparsed answer) or infinite gives 0, and so does a box
    that `iou_xyxy` does not accept. Raises ValueError for other shapes. Source: pointing accuracy,
    as in ScreenSpot (SeeClick, arXiv:2401.10935).
    """
    xy, gt = _as_points(points, gt)
    is_inside = (xy >= gt[:, :2]) & (xy <= gt[:, 2:])  # False for NaN
    return np.where(is_inside.all(axis=1) & _is_box(gt), 1.0, 0.0)


def point_closeness(points: npt.ArrayLike, gt: npt.ArrayLike, sizes: npt.ArrayLike) -> Floats:
    """1 - distance to the true point / diagonal of the image, at least 0; `(n,)` in [0, 1].

    `points`, `gt` and `sizes` (width, height) are `(n, 2)` in one unit. A point that is NaN (an
    unparsed answer) or infinite gives 0, in either array. Raises ValueError for other shapes. The
    measure is ours; distances in shares of the screen as in AITW's matching of clicks
    (arXiv:2307.10088).
    """
    xy, true, size = (np.asarray(one, dtype=np.float64) for one in (points, gt, sizes))
    if xy.ndim != 2 or xy.shape[1] != 2 or not xy.shape == true.shape == size.shape:
        raise ValueError(
            f"all must have the shape (n, 2), not {xy.shape}, {true.shape}, {size.shape}"
        )
    with np.errstate(all="ignore"):
        shares = np.hypot(*(xy - true).T) / np.hypot(*size.T)
    return np.where(np.isfinite(shares), np.clip(1.0 - shares, 0.0, 1.0), 0.0)


def point_gaussians(points: npt.ArrayLike, gt: npt.ArrayLike) -> Floats:
    """How near a point is to the centre of the true box: exp(-(dx^2 + dy^2) / 2), in [0, 1].

    dx and dy are the distances from the centre in units of `SPREAD` times the box's width and
    height: 1 at the centre, 0.61 in the middle of an edge, 0.37 at a corner, and it falls on
    outside. Shapes, and the rows that give 0, as in `points_in_boxes`; so does a box without width
    or height. Source: the point reward of GUI-G2, arXiv:2507.15846.
    """
    xy, gt = _as_points(points, gt)
    sides = gt[:, 2:] - gt[:, :2]
    is_measured = _is_box(gt) & (sides > 0).all(axis=1) & np.isfinite(xy).all(axis=1)
    with np.errstate(all="ignore"):
        distances = (xy - (gt[:, :2] + gt[:, 2:]) / 2) / (SPREAD * sides)
        rewards = np.exp(-(distances**2).sum(axis=1) / 2)
    return np.where(is_measured, rewards, 0.0)


def _as_points(points: npt.ArrayLike, gt: npt.ArrayLike) -> tuple[Floats, Floats]:
    xy, boxes = np.asarray(points, dtype=np.float64), _as_boxes(gt, "gt")
    if xy.shape != (len(boxes), 2):
        raise ValueError(f"points must have the shape ({len(boxes)}, 2), not {xy.shape}")
    return xy, boxes


def _pairs(pred: npt.ArrayLike, gt: npt.ArrayLike) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """Both as `(n, 4)`, zeros in the rows where one is no box, and which rows are boxes."""
    pred, gt = _as_boxes(pred, "pred"), _as_boxes(gt, "gt")
    if pred.shape != gt.shape:
        raise ValueError(f"pred has {len(pred)} boxes, gt has {len(gt)}")
    is_valid = _is_box(pred) & _is_box(gt)
    keep = is_valid[:, None]
    return np.where(keep, pred, 0.0), np.where(keep, gt, 0.0), is_valid


def _ious(pred: Floats, gt: Floats) -> tuple[Floats, Floats]:
    """IoU and area of the union of valid boxes."""
    sides = np.minimum(pred[:, 2:], gt[:, 2:]) - np.maximum(pred[:, :2], gt[:, :2])
    intersection = np.prod(np.maximum(sides, 0.0), axis=1)
    union = _areas(pred) + _areas(gt) - intersection
    iou = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    return np.minimum(iou, 1.0), union  # rounding can lift equal boxes above 1 by an ulp


def _as_boxes(boxes: npt.ArrayLike, name: str) -> Floats:
    array = np.asarray(boxes, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"{name} must have the shape (n, 4), not {array.shape}")
    return array


def _is_box(boxes: Floats) -> npt.NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        is_ordered = (boxes[:, 0] <= boxes[:, 2]) & (boxes[:, 1] <= boxes[:, 3])
        is_finite = (np.abs(boxes) < 1e100).all(axis=1)  # beyond, areas overflow
    return np.asarray(is_finite & is_ordered)


def _areas(boxes: Floats) -> Floats:
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
