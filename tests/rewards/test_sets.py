"""Sets of boxes against hand-derived values and all matchings there are."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import box as shapely_box

from perpo_pipeline.rewards.sets import set_ious

NONE = np.empty((0, 4))
UNPARSED = (math.nan,) * 4
A, B, FAR = (0, 0, 2, 2), (4, 0, 6, 2), (50, 50, 60, 60)
HALF_A = (0, 0, 1, 2)

coordinate = st.integers(0, 6)
boxes = st.tuples(coordinate, coordinate, st.integers(1, 5), st.integers(1, 5)).map(
    lambda c: (c[0], c[1], c[0] + c[2], c[1] + c[3])
)
sets = st.lists(boxes, max_size=4)


@pytest.mark.parametrize(
    ("pred", "gt", "expected"),
    [
        ([A], [A], 1),
        ([A, B], [B, A], 1),
        ([HALF_A], [A], 0.5),
        ([HALF_A, B], [A, B], 0.75),
        ([A], [A, B], 0.5),
        ([A, B, FAR], [A], 1 / 3),
        ([A, A], [A], 0.5),
        ([A, UNPARSED], [A], 0.5),
        ([UNPARSED], [A], 0),
        ([(2, 0, 0, 2)], [A], 0),
        ([FAR], [A], 0),
        (NONE, NONE, 1),
        (NONE, [A], 0),
        ([A], NONE, 0),
    ],
    ids=[
        "same",
        "order",
        "half",
        "one of two half",
        "missing",
        "two spare",
        "twice the same",
        "unparsed spare",
        "unparsed",
        "inverted",
        "apart",
        "both empty",
        "no answer",
        "no truth",
    ],
)
def test_set_iou_derived_by_hand(pred, gt, expected):
    assert set_ious([pred], [gt]).tolist() == pytest.approx([expected], abs=1e-15)


def test_the_best_matching_need_not_hold_the_best_pair():
    """The IoUs are [[6/10, 3/8], [3/13, 0]], and 3/8 + 3/13 = 0.606 beats 6/10 + 0."""
    pred, gt = [(0, 0, 8, 1), (-3, 0, 5, 1)], [(2, 0, 10, 1), (5, 0, 8, 1)]
    assert set_ious([pred], [gt])[0] == pytest.approx((3 / 8 + 3 / 13) / 2, abs=1e-15)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(sets, sets), max_size=4))
def test_the_matching_is_the_best_of_all_there_are(pairs):
    def oracle(pred, gt):
        if not pred or not gt:
            return float(pred == gt)
        few, many = sorted(([shapely_box(*b) for b in side] for side in (pred, gt)), key=len)
        best = max(
            sum(a.intersection(b).area / a.union(b).area for a, b in zip(few, chosen, strict=True))
            for chosen in itertools.permutations(many, len(few))
        )
        return best / len(many)

    found = set_ious([pred for pred, _ in pairs], [gt for _, gt in pairs])
    expected = [oracle(pred, gt) for pred, gt in pairs]
    np.testing.assert_allclose(found, expected, atol=1e-12)


any_boxes = st.lists(st.tuples(*[st.floats()] * 4), max_size=3)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(any_boxes, any_boxes), max_size=4))
def test_any_numbers_give_a_reward_between_0_and_1(pairs):
    pred, gt = (
        [np.array(side, dtype=float).reshape(-1, 4) for side in sides]
        for sides in ([a for a, _ in pairs], [b for _, b in pairs])
    )
    found = set_ious(pred, gt)
    assert found.dtype == np.float64 and found.shape == (len(pairs),)
    assert ((found >= 0) & (found <= 1)).all()


def test_sets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="pred has 1 sets of boxes, gt has 2"):
        set_ious([[A]], [[A], [B]])
    with pytest.raises(ValueError, match=r"sets of pred must have the shape \(k, 4\)"):
        set_ious([[(0, 0, 1)]], [[A]])
    with pytest.raises(ValueError, match=r"sets of gt must have the shape \(k, 4\)"):
        set_ious([[A]], [A])
