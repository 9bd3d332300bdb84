"""Regions against hand-derived areas, winding numbers and the IoU of boxes."""

import math

import numpy as np
import pytest
import shapely
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from perpo_pipeline.rewards.grounding import iou_xyxy
from perpo_pipeline.rewards.polygon import LARGEST, polygon_ious

SQUARE = ((0, 0), (2, 0), (2, 2), (0, 2))
TRIANGLE = ((0, 0), (2, 0), (0, 2))
BOW_TIE = ((0, 0), (2, 2), (2, 0), (0, 2))

points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=9)


def iou(pred, gt) -> float:
    return float(polygon_ious([pred], [gt])[0])


@pytest.mark.parametrize(
    ("pred", "gt", "expected"),
    [
        pytest.param(SQUARE, SQUARE, 1, id="same"),
        pytest.param(SQUARE, (*SQUARE, SQUARE[0]), 1, id="closed"),
        pytest.param(SQUARE, SQUARE[::-1], 1, id="turned round"),
        pytest.param(TRIANGLE, SQUARE, 0.5, id="half"),
        pytest.param(TRIANGLE, ((2, 0), (2, 2), (0, 2)), 0, id="touching"),
        pytest.param(((0, 0), (1, 0), (2, 0), *SQUARE[2:]), SQUARE, 1, id="a point on an edge"),
        pytest.param((*SQUARE, *SQUARE), SQUARE, 1, id="twice around"),
        pytest.param(((0, 0), (2, 0), (5, 0), (2, 0), (2, 2), (0, 2)), SQUARE, 1, id="a spike"),
        pytest.param(BOW_TIE, SQUARE, 0.5, id="both lobes of a bow tie"),
        pytest.param(SQUARE, BOW_TIE, 0.5, id="a true bow tie"),
        pytest.param((*SQUARE, *SQUARE[::-1]), SQUARE, 0, id="there and back winds around nothing"),
        pytest.param(((0, 0), (1, 1), (2, 2)), SQUARE, 0, id="a line"),
        pytest.param(SQUARE, ((0, 0), (1, 1), (2, 2)), 0, id="a true line"),
        pytest.param(((1, 1),) * 3, ((1, 1),) * 3, 0, id="the same point"),
        pytest.param(None, SQUARE, 0, id="unparsed"),
        pytest.param(SQUARE, None, 0, id="no truth"),
        pytest.param(SQUARE[:2], SQUARE, 0, id="two points"),
        pytest.param(np.empty((0, 2)), SQUARE, 0, id="no points"),
        pytest.param((*SQUARE, (math.nan, 0)), SQUARE, 0, id="NaN"),
        pytest.param((*SQUARE, (math.inf, 0)), SQUARE, 0, id="infinite"),
        pytest.param((*SQUARE, (-1e300, 1e308)), SQUARE, 0, id="far beyond any image"),
    ],
)
def test_polygon_iou_derived_by_hand(pred, gt, expected):
    assert iou(pred, gt) == pytest.approx(expected, abs=1e-12)
    found = polygon_ious([SQUARE, pred, SQUARE], [SQUARE, gt, TRIANGLE])
    assert found.tolist() == pytest.approx([1, expected, 0.5], abs=1e-12)


def test_a_five_pointed_star_drawn_in_one_go_is_filled():
    """Its inner pentagon is wound around twice; the star consists of 10 triangles at its centre."""
    star = [(math.cos(4 * math.pi * k / 5), math.sin(4 * math.pi * k / 5)) for k in range(5)]
    golden = (1 + math.sqrt(5)) / 2
    inner = 1 / golden**2  # radius of the five inner corners
    area = 5 * inner * math.sin(math.pi / 5)
    frame = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    assert iou(star, frame) == pytest.approx(area / 4, abs=1e-9)


def winding_number(outline, x: float, y: float) -> int:
    """How often the outline turns around the point: the angles its edges span, seen from there."""
    seen = np.array([(px - x) + 1j * (py - y) for px, py in outline])
    angles = np.angle(np.roll(seen, -1) / seen)
    return round(float(angles.sum()) / (2 * math.pi))


@settings(max_examples=150, deadline=None)
@given(points, st.integers(0, 100_000))
def test_a_region_is_what_its_outline_winds_around(outline, place):
    """Seen through a small window away from the outline, which it fills or does not touch."""
    x, y = 6 * (place % 317) / 317 + 0.0013, 6 * (place // 317) / 317 + 0.0017
    ring = shapely.LinearRing(outline)
    half = 1e-4
    assume(ring.distance(shapely.Point(x, y)) > 3 * half)
    window = [
        (x - half, y - half),
        (x + half, y - half),
        (x + half, y + half),
        (x - half, y + half),
    ]
    is_covered = iou(outline, window) > 0
    assert is_covered == (winding_number(outline, x, y) != 0)


@settings(max_examples=200, deadline=None)
@given(points, points, st.integers(0, 8))
@example([(0, 1), (0, 2), (1, 0), (0, 1), (1, 0)], [(0, 0), (0, 1), (1, 1)], 3)
def test_start_direction_and_order_of_the_pair_do_not_matter(a, b, turn):
    turn %= len(a)
    turned = a[turn:] + a[:turn]
    expected = pytest.approx(iou(a, b), abs=1e-9)
    assert iou(turned, b) == expected
    assert iou(turned[::-1], b) == expected
    assert iou(b, a) == expected


coordinate = st.floats(0, 1000)
boxes = st.tuples(coordinate, coordinate, coordinate, coordinate).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


@settings(max_examples=100, deadline=None)
@given(boxes, boxes)
def test_rectangles_have_the_iou_of_boxes(a, b):
    def corners(box):
        x1, y1, x2, y2 = box
        return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]

    sizes = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    if max(sizes) > 1e-3:  # below, the rounding to 9 decimals shows
        assert iou(corners(a), corners(b)) == pytest.approx(iou_xyxy([a], [b])[0], abs=1e-6)


any_number = st.floats() | st.floats(-LARGEST, LARGEST) | st.floats(-3, 3) | st.just(5e-324)
any_outline = (
    st.none()
    | points
    | st.lists(st.tuples(any_number, any_number), max_size=7).map(
        lambda found: np.array(found, dtype=float).reshape(-1, 2)
    )
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(any_outline, any_outline), max_size=5))
def test_any_numbers_give_a_reward_between_0_and_1(pairs):
    found = polygon_ious([a for a, _ in pairs], [b for _, b in pairs])
    assert found.dtype == np.float64 and found.shape == (len(pairs),)
    assert ((found >= 0) & (found <= 1)).all()
    alone = [iou(a, b) for a, b in pairs]
    assert found.tolist() == alone


def test_what_is_no_list_of_points_is_refused():
    with pytest.raises(ValueError, match="pred has 1 polygons, gt has 2"):
        polygon_ious([SQUARE], [SQUARE, SQUARE])
    with pytest.raises(ValueError, match=r"outlines of pred must have the shape \(k, 2\)"):
        polygon_ious([[0, 0, 1, 1]], [SQUARE])
    with pytest.raises(ValueError, match="outlines of gt"):
        polygon_ious([None], [[(0, 0, 0)]])


def test_an_outline_of_many_points_that_crosses_itself_is_no_region():
    """The time for one grows with the square of its points; a simple one is read at any length."""
    triangle = np.array([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]])
    wound = [np.tile(triangle, (turns, 1)) for turns in (66, 67)]
    circle = np.linspace(0, 2 * np.pi, 1000, endpoint=False)
    round_one = np.column_stack([np.cos(circle), np.sin(circle)])
    found = polygon_ious([*wound, round_one], [triangle, triangle, round_one])
    assert found.tolist() == pytest.approx([1.0, 0.0, 1.0])
