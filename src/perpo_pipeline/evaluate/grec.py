"""The metrics of generalised referring expressions (GREC, gRefCOCO), arXiv:2308.16182.

An expression may describe any number of objects, or none. The authors' evaluation looks at the
boxes alone, and so do these functions; they differ from it in one point: an answer without any text
is never right, where a detector without boxes always is.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from perpo_pipeline.rewards.grounding import giou_xyxy

Floats = npt.NDArray[np.float64]

RIGHT_AT = 0.5


def have_boxes(found: Sequence[Floats]) -> npt.NDArray[np.bool_]:
    """Whether each answer has a box, `(n,)`; `found` has n arrays `(k, 4)`."""
    return np.array([len(boxes) > 0 for boxes in found], dtype=bool)


def all_found(found: Sequence[Floats], true: Sequence[Floats]) -> Floats:
    """1 where the boxes of an answer have an F1 of 1, else 0; `(n,)`. Pr@(F1=1, IoU>=0.5).

    `found` has n arrays `(k, 4)`, `true` n arrays `(m, 4)`, xyxy in one unit. Pairs are matched
    from the best on, and are hits from `RIGHT_AT` on. As in the authors' script, but not in their
    paper, the overlap is the GIoU, which is the IoU or less. Without a target an answer without
    boxes is right. Source: `RefExpEvaluator` of github.com/henghuiding/gRefCOCO.
    """
    pairs = zip(found, true, strict=True)
    return np.array([float(_is_all_found(*pair)) for pair in pairs], dtype=np.float64)


def _is_all_found(boxes: Floats, truth: Floats) -> bool:
    k, m = len(boxes), len(truth)
    if k != m or not k:
        return k == m
    gious = giou_xyxy(np.repeat(boxes, m, axis=0), np.tile(truth, (k, 1))).reshape(k, m) * 2 - 1
    for _ in range(k):
        row, column = np.unravel_index(np.argmax(gious), gious.shape)
        if gious[row, column] < RIGHT_AT:
            return False
        gious[row, :], gious[:, column] = 0.0, 0.0
    return True
