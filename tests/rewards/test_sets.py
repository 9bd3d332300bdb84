"""Sets of boxes against hand-derived values and all matchings there are."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import box as shapely_box

from perpo_pipeline.rewards import sets as sets_module
from perpo_pipeline.rewards.sets import COCO_THRESHOLDS, box_counts, detection_f1s, set_ious

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
    for reward in (set_ious, detection_f1s, box_counts):
        found = reward(pred, gt)
        assert found.dtype == np.float64 and found.shape == (len(pairs),)
        assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize(
    ("pred", "gt", "f1", "count"),
    [
        ([A], [A], 1, 1),
        ([HALF_A], [A], 1, 1),  # an IoU of 0.5 is enough
        ([A, A], [A], 2 / 3, 1 / 2),
        ([A, A, A, A], [A], 2 / 5, 1 / 4),
        ([A, B], [B, A], 1, 1),
        ([A], [A, B], 2 / 3, 1 / 2),
        ([A, FAR], [A, B], 1 / 2, 1),
        ([FAR], [A], 0, 1),
        ([A, UNPARSED], [A], 2 / 3, 1 / 2),
        (NONE, NONE, 1, 1),
        (NONE, [A], 0, 0),
        ([A], NONE, 0, 0),
    ],
)
def test_f1_and_the_number_of_boxes_derived_by_hand(pred, gt, f1, count):
    assert detection_f1s([pred], [gt]).tolist() == pytest.approx([f1], abs=1e-15)
    assert box_counts([pred], [gt]).tolist() == pytest.approx([count], abs=1e-15)


def test_the_mean_f1_over_cocos_thresholds_by_hand():
    """IoUs of 1 and 8/10 of two true boxes: F1 is 1 up to 0.8, then 1/2 at 0.85, 0.9 and 0.95."""
    pred, gt = [(0, 0, 10, 1), (20, 0, 28, 1)], [(0, 0, 10, 1), (20, 0, 30, 1)]
    assert len(COCO_THRESHOLDS) == 10 and COCO_THRESHOLDS[-1] == 0.95
    found = detection_f1s([pred], [gt], COCO_THRESHOLDS)
    assert found.tolist() == pytest.approx([(7 + 3 / 2) / 10], abs=1e-15)


def test_the_largest_matching_counts_not_the_one_of_the_best_pair():
    """x reaches 0.5 with both true boxes, y with the first alone: both are found."""
    truth = [(0, 0, 10, 1), (2, 0, 12, 1)]
    x, y = (1, 0, 11, 1), (-2, 0, 8, 1)
    assert detection_f1s([[x, y]], [truth]).tolist() == [1.0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(sets, sets), max_size=4), st.sampled_from([0.3, 0.5, 0.75]))
def test_f1_is_that_of_the_best_of_all_matchings_and_symmetric(pairs, threshold):
    def oracle(pred, gt):
        if not pred or not gt:
            return float(pred == gt)
        few, many = sorted(([shapely_box(*b) for b in side] for side in (pred, gt)), key=len)
        hits = max(
            sum(
                a.intersection(b).area / a.union(b).area >= threshold
                for a, b in zip(few, chosen, strict=True)
            )
            for chosen in itertools.permutations(many, len(few))
        )
        return 2 * hits / (len(pred) + len(gt))

    ours, truths = [pred for pred, _ in pairs], [gt for _, gt in pairs]
    found = detection_f1s(ours, truths, [threshold])
    np.testing.assert_allclose(found, [oracle(*pair) for pair in pairs], atol=1e-12)
    assert detection_f1s(truths, ours, [threshold]).tolist() == found.tolist()
    assert box_counts(truths, ours).tolist() == box_counts(ours, truths).tolist()


@settings(max_examples=50, deadline=None)
@given(st.lists(boxes, min_size=1, max_size=4), st.data())
def test_a_right_answer_with_a_copy_is_worth_less_than_without(gt, data):
    copy = data.draw(st.sampled_from(gt))
    for reward in (set_ious, detection_f1s, box_counts):
        assert reward([gt], [gt])[0] == 1
        assert reward([[*gt, copy]], [gt])[0] < 1
        assert reward([[*gt, copy, copy]], [gt])[0] < reward([[*gt, copy]], [gt])[0]


def test_pairs_are_compared_in_small_amounts_with_the_same_result(monkeypatch):
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 50, (40, 5, 2, 2)).cumsum(axis=2).reshape(40, 5, 4)
    pred, gt = (
        [c[: i % 6] for i, c in enumerate(corners)],
        [c[:: i % 3 + 1] for i, c in enumerate(corners)],
    )
    expected = set_ious(pred, gt)
    for amount in (1, 7, 60):
        monkeypatch.setattr(sets_module, "PAIRS_AT_ONCE", amount)
        assert set_ious(pred, gt).tolist() == expected.tolist()


def test_sets_that_do_not_fit_are_refused():
    for reward in (detection_f1s, box_counts):
        with pytest.raises(ValueError, match="pred has 1 sets of boxes, gt has 2"):
            reward([[A]], [[A], [B]])
    with pytest.raises(ValueError, match="pred has 1 sets of boxes, gt has 2"):
        set_ious([[A]], [[A], [B]])
    with pytest.raises(ValueError, match=r"sets of pred must have the shape \(k, 4\)"):
        set_ious([[(0, 0, 1)]], [[A]])
    with pytest.raises(ValueError, match=r"sets of gt must have the shape \(k, 4\)"):
        set_ious([[A]], [A])
