"""GREC's metrics by hand, and against a direct transcription of its definition."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import box as shapely_box

from perpo_pipeline.evaluate.grec import all_found, have_boxes

NONE = np.empty((0, 4))
A, B, FAR = (0, 0, 10, 10), (20, 0, 30, 10), (50, 50, 60, 60)


@pytest.mark.parametrize(
    ("found", "true", "expected"),
    [
        (NONE, NONE, 1),
        ([A], NONE, 0),
        (NONE, [A], 0),
        ([A], [A], 1),
        ([B, A], [A, B], 1),
        ([A], [A, B], 0),
        ([A, B], [A], 0),
        ([A, A], [A, B], 0),
        ([A, FAR], [A, B], 0),
        ([(0, 0, 10, 5)], [A], 1),  # IoU 0.5, and the box is inside: GIoU 0.5
        ([(0, 0, 10, 4.9)], [A], 0),
        # 7 x 7 of overlap: IoU 49 / 151, GIoU lower.
        ([(3, 3, 13, 13)], [A], 0),
        # 8 x 9 of overlap, IoU 72 / 128 = 0.5625 is enough; the hull is 12 x 11 = 132, so that
        # GIoU is 0.5625 - 4 / 132 = 0.532, and right as well.
        ([(2, 1, 12, 11)], [A], 1),
        # 7.5 x 9.5: IoU 71.25 / 128.75 = 0.553; hull 12.5 x 10.5 = 131.25: 0.534.
        ([(2.5, 0.5, 12.5, 10.5)], [A], 1),
        # 8 x 8.5: IoU 68 / 132 = 0.515, hull 12 x 11.5 = 138: GIoU 0.472.
        ([(2, 1.5, 12, 11.5)], [A], 0),
    ],
)
def test_an_answer_is_right_if_all_its_boxes_are_by_hand(found, true, expected):
    assert all_found([np.array(found)], [np.array(true)]).tolist() == [expected]


coordinate = st.integers(0, 8)
boxes = st.tuples(coordinate, coordinate, st.integers(1, 8), st.integers(1, 8)).map(
    lambda c: (c[0], c[1], c[0] + c[2], c[1] + c[3])
)


@settings(max_examples=150, deadline=None)
@given(st.lists(boxes, max_size=3), st.lists(boxes, max_size=3))
def test_an_answer_is_right_only_if_some_matching_has_every_giou_at_half(found, true):
    """Matching from the best pair on can miss such a matching, never invent one."""

    def giou(a, b):
        a, b = shapely_box(*a), shapely_box(*b)
        union, hull = a.union(b).area, a.union(b).envelope.area
        return a.intersection(b).area / union - (hull - union) / hull

    (is_right,) = all_found([np.array(found).reshape(-1, 4)], [np.array(true).reshape(-1, 4)])
    matchings = itertools.permutations(true) if len(found) == len(true) else ()
    possible = any(
        all(giou(a, b) >= 0.5 - 1e-9 for a, b in zip(found, chosen, strict=True))
        for chosen in matchings
    )
    assert is_right <= possible
    if len(true) <= 1:
        sure = len(found) == len(true) and all(
            giou(a, b) >= 0.5 + 1e-9 for a, b in zip(found, true, strict=True)
        )
        assert is_right >= sure


def test_boxes_that_are_no_boxes_are_still_answers():
    unread = np.full((1, 4), np.nan)
    assert have_boxes([NONE, unread]).tolist() == [False, True]
    assert all_found([unread, unread], [NONE, np.array([A])]).tolist() == [0, 0]
    assert all_found([], []).shape == (0,)
