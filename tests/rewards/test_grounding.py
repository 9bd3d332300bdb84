"""IoU against shapely, the released PerPO record, and published AP@50 figures."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import box as shapely_box

from perpo_pipeline.answers.boxes import parse_box
from perpo_pipeline.rewards.grounding import (
    STRICT_STEPS,
    giou_xyxy,
    iou_xyxy,
    point_closeness,
    point_gaussians,
    points_in_boxes,
    stepped_ious,
)

UNPARSED = (math.nan,) * 4

coordinate = st.floats(0, 1000)
boxes = st.tuples(coordinate, coordinate, coordinate, coordinate).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


def xyxy(xywh: list[float]) -> list[float]:
    x, y, w, h = xywh
    return [x, y, x + w, y + h]


def ap50(pred: list, gt: list) -> float:
    return float(np.mean(iou_xyxy(pred, gt) >= 0.5))


def test_iou_of_boxes_derived_by_hand():
    """Unit overlap of two 2x2 boxes: 1 / 7; half covered: 1/2; touching and apart: 0."""
    pred = [[0, 0, 2, 2], [0, 0, 1, 2], [0, 0, 1, 1], [0, 0, 1, 1], [3, 4, 5, 6]]
    gt = [[1, 1, 3, 3], [0, 0, 2, 2], [1, 0, 2, 1], [5, 5, 6, 6], [3, 4, 5, 6]]
    assert iou_xyxy(pred, gt).tolist() == pytest.approx([1 / 7, 0.5, 0.0, 0.0, 1.0], abs=1e-15)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(boxes, boxes), min_size=1, max_size=5))
def test_iou_equals_shapelys(pairs):
    def oracle(a, b):
        a, b = shapely_box(*a), shapely_box(*b)
        union = a.area + b.area - a.intersection(b).area
        return a.intersection(b).area / union if union > 1e-6 else None

    found = iou_xyxy([a for a, _ in pairs], [b for _, b in pairs])
    for value, (a, b) in zip(found, pairs, strict=True):
        expected = oracle(a, b)
        if expected is not None:
            assert value == pytest.approx(expected, abs=1e-8)
        assert 0 <= value <= 1


@settings(max_examples=50, deadline=None)
@given(boxes, boxes)
def test_iou_is_symmetric(a, b):
    assert iou_xyxy([a], [b]) == iou_xyxy([b], [a])


@pytest.mark.parametrize(
    "not_a_box",
    [
        pytest.param(UNPARSED, id="unparsed"),
        pytest.param((0, 0, math.nan, 10), id="one NaN"),
        pytest.param((10, 0, 0, 10), id="x inverted"),
        pytest.param((0, 10, 10, 0), id="y inverted"),
        pytest.param((10, 10, 0, 0), id="both inverted"),
        pytest.param((-math.inf, 0, math.inf, 10), id="infinite"),
        pytest.param((0, 0, 1e200, 1e200), id="area overflows"),
        pytest.param((5, 5, 5, 5), id="a point"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_not_a_box_overlaps_nothing(not_a_box):
    real = (0, 0, 10, 10)
    found = iou_xyxy([not_a_box, real, not_a_box, real], [real, not_a_box, not_a_box, real])
    assert found.tolist() == [0, 0, 0, 1]


def test_no_boxes_give_no_values():
    assert iou_xyxy(np.empty((0, 4)), np.empty((0, 4))).shape == (0,)


@pytest.mark.parametrize(
    ("pred", "gt", "message"),
    [
        ([0, 0, 1, 1], [[0, 0, 1, 1]], r"pred must have the shape"),
        ([[0, 0, 1, 1]], [[0, 0, 1]], r"gt must have the shape"),
        ([[0, 0, 1, 1]] * 2, [[0, 0, 1, 1]], r"pred has 2 boxes, gt has 1"),
    ],
)
def test_shapes_that_do_not_match_are_refused(pred, gt, message):
    with pytest.raises(ValueError, match=message):
        iou_xyxy(pred, gt)


# --- points --------------------------------------------------------------------------------------


def test_a_point_inside_or_on_the_edge_of_the_box_is_right():
    points = [[1, 1], [0, 0], [2, 3], [0, 3], [2.001, 1], [1, -0.001], [5, 5]]
    found = points_in_boxes(points, [[0, 0, 2, 3]] * len(points))
    assert found.tolist() == [1, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("point", "gt"),
    [
        pytest.param((math.nan, 1), (0, 0, 2, 2), id="NaN"),
        pytest.param((math.inf, 1), (0, 0, 2, 2), id="infinite"),
        pytest.param((1, 1), (2, 0, 0, 2), id="inverted box"),
        pytest.param((1, 1), (0, 0, math.nan, 2), id="a box with NaN"),
        pytest.param((1, 1), (0, 0, math.inf, 2), id="infinite box"),
    ],
)
def test_what_is_no_point_or_no_box_is_wrong(point, gt):
    assert points_in_boxes([point, (1, 1)], [gt, (0, 0, 2, 2)]).tolist() == [0, 1]


def test_a_box_without_area_holds_its_own_point():
    assert points_in_boxes([(5, 5), (5, 6)], [(5, 5, 5, 5)] * 2).tolist() == [1, 0]


@given(st.lists(st.tuples(st.tuples(*[st.floats()] * 2), st.tuples(*[st.floats()] * 4))))
def test_any_point_is_right_or_wrong(rows):
    points = np.array([point for point, _ in rows], dtype=float).reshape(-1, 2)
    gt = np.array([box for _, box in rows], dtype=float).reshape(-1, 4)
    found = points_in_boxes(points, gt)
    assert found.dtype == np.float64 and found.shape == (len(rows),)
    assert set(found) <= {0, 1}


def test_points_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"points must have the shape \(1, 2\)"):
        points_in_boxes([[0, 0]] * 2, [[0, 0, 1, 1]])


# --- published values ----------------------------------------------------------------------------


def test_the_twenty_rewards_of_the_released_perpo_record_are_reproduced(realdata: Path):
    """Full frame, and the unrounded ground truth, in the image of 640 x 424."""
    record = json.loads((realdata / "perpo_official_sample" / "data.json").read_text())[0]
    pred = [
        parse_box(answer, "llava", frame="full", image_size=(640, 424))
        for answer in record["answers_gen"]
    ]
    found = iou_xyxy(pred, [[389, 43, 494, 229]] * len(pred))
    assert len(pred) == 20
    np.testing.assert_allclose(found, record["iou_scores"], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("frame", "published", "tolerance"),
    [("full", 0.4891139240506329, 1e-15), ("crop", 0.522, 5e-4), ("pad", 0.254, 5e-4)],
)
def test_llava15_scores_its_published_ap50_in_each_frame(
    realdata: Path, frame: str, published: float, tolerance: float
):
    path = realdata / "rec_predictions" / "llava15_refcoco_testA.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    pred = [
        parse_box(
            row["raw_response"], "llava", frame=frame, image_size=(row["width"], row["height"])
        )
        or UNPARSED
        for row in rows
    ]
    gt = [xyxy(row["gt_xywh"]) for row in rows]
    assert len(rows) == 1975
    assert ap50(pred, gt) == pytest.approx(published, abs=tolerance)
    if frame == "full":
        correct = iou_xyxy(pred, gt) >= 0.5
        assert correct.astype(int).tolist() == [row["published_correct"] for row in rows]


def test_internvl_scores_its_published_ap50(realdata: Path):
    """Boxes in pixels; 20 answers hold none and stay in the denominator, two are inverted."""
    path = realdata / "rec_predictions" / "internvl25_refcoco_testA.json"
    rows = json.loads(path.read_text())["lmms-lab/RefCOCO"]["internvl"]
    pred = [row["prediction"].get("box", UNPARSED) for row in rows]
    gt = [xyxy(row["gt_bbox"]) for row in rows]
    assert sum(box[0] > box[2] or box[1] > box[3] for box in pred) == 2
    assert ap50(pred, gt) == pytest.approx(0.8941772151898734, abs=1e-15)


def test_giou_of_boxes_derived_by_hand():
    """Equal; half of it; side by side; a gap of two unit boxes in a hull of four: -1/2; a corner
    shared by two unit boxes in a hull of 2 x 2: -1/2."""
    pred = [[0, 0, 2, 2], [0, 0, 1, 2], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    gt = [[0, 0, 2, 2], [0, 0, 2, 2], [1, 0, 2, 1], [3, 0, 4, 1], [1, 1, 2, 2]]
    assert giou_xyxy(pred, gt).tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0.25], abs=1e-15)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(boxes, boxes), min_size=1, max_size=5))
def test_giou_equals_the_papers_formula_with_shapelys_areas(pairs):
    found = giou_xyxy([a for a, _ in pairs], [b for _, b in pairs])
    for value, corners in zip(found, pairs, strict=True):
        a, b = (shapely_box(*c) for c in corners)
        union, hull = a.union(b).area, a.union(b).envelope.area
        if min(a.area, b.area) > 1e-6:
            giou = a.intersection(b).area / union - (hull - union) / hull
            assert value == pytest.approx((1 + giou) / 2, abs=1e-8)
        assert 0 <= value <= 1
    assert giou_xyxy(*zip(*pairs, strict=True)) == pytest.approx(
        giou_xyxy([b for _, b in pairs], [a for a, _ in pairs]), abs=1e-12
    )


def test_giou_falls_with_the_distance_of_boxes_that_do_not_overlap():
    far = [[10 * i, 0, 10 * i + 5, 5] for i in range(1, 50)]
    found = giou_xyxy(far, [[0, 0, 5, 5]] * len(far))
    assert (np.diff(found) < 0).all() and (found > 0).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("reward", [iou_xyxy, giou_xyxy])
def test_what_is_no_box_gets_nothing(reward):
    real, others = (0, 0, 10, 10), [UNPARSED, (10, 0, 0, 10), (-math.inf, 0, math.inf, 10)]
    assert reward(others, [real] * 3).tolist() == reward([real] * 3, others).tolist() == [0] * 3
    assert reward([(5, 5, 5, 5)], [(5, 5, 5, 5)]).tolist() == [0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.floats()] * 8), min_size=1, max_size=4))
def test_giou_of_any_numbers_is_in_0_to_1(rows):
    found = giou_xyxy([row[:4] for row in rows], [row[4:] for row in rows])
    assert ((found >= 0) & (found <= 1)).all()


def test_steps_derived_by_hand():
    """Vision-R1: nothing below 0.5, everything above 0.75, the IoU from one to the other."""
    ious = [0.0, 0.49, 0.5, 0.6, 0.75, 0.76, 1.0]
    assert stepped_ious(ious).tolist() == [0, 0, 0.5, 0.6, 0.75, 1, 1]
    assert stepped_ious(ious, STRICT_STEPS).tolist() == [0, 0, 0, 0, 0.75, 0.76, 1]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1))
def test_steps_never_fall_where_the_iou_rises(ious):
    for steps in (stepped_ious(sorted(ious)), stepped_ious(sorted(ious), STRICT_STEPS)):
        assert (np.diff(steps) >= 0).all() and ((steps >= 0) & (steps <= 1)).all()


def test_a_point_is_worth_more_the_nearer_it_is_to_the_centre_by_hand():
    """The centre of a box of 4 x 2, the middle of its right edge, a corner, outside, no point."""
    points = [(2, 1), (4, 1), (4, 2), (6, 1), (math.nan, 1), (math.inf, 1)]
    found = point_gaussians(points, [(0, 0, 4, 2)] * 6).tolist()
    expected = [1, math.exp(-0.5), math.exp(-1), math.exp(-2), 0, 0]
    assert found == pytest.approx(expected, abs=1e-15)
    boxes = [UNPARSED, (2, 2, 0, 0), (1, 1, 1, 5)]
    assert point_gaussians([(1, 1)] * 3, boxes).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"points must have the shape \(1, 2\)"):
        point_gaussians([(1, 1, 1)], [(0, 0, 4, 2)])


@settings(max_examples=100, deadline=None)
@given(boxes, st.tuples(st.floats(), st.floats()))
def test_the_reward_of_any_point_is_in_0_to_1_and_that_of_a_mirrored_one_is_the_same(box, point):
    (found,) = point_gaussians([point], [box])
    assert 0 <= found <= 1
    mirrored = box[0] + box[2] - point[0], box[1] + box[3] - point[1]
    is_large = min(box[2] - box[0], box[3] - box[1]) > 1
    if is_large and all(abs(value) < 1e6 for value in mirrored):
        assert point_gaussians([mirrored], [box])[0] == pytest.approx(found, abs=1e-9)


def test_closeness_falls_with_the_distance_by_hand():
    """An image of 30 x 40 has a diagonal of 50: at the point, 5, 50 and 500 away, and no point."""
    points = [(3, 4), (6, 8), (33, 44), (303, 404), (math.nan, 4), (3, math.inf)]
    found = point_closeness(points, [(3, 4)] * 6, [(30, 40)] * 6)
    assert found.tolist() == pytest.approx([1, 0.9, 0, 0, 0, 0], abs=1e-15)
    with pytest.raises(ValueError, match=r"all must have the shape \(n, 2\)"):
        point_closeness([(1, 2)], [(1, 2, 3)], [(1, 1)])


@settings(max_examples=100, deadline=None)
@given(
    *[st.tuples(st.floats(), st.floats())] * 2, st.tuples(st.integers(1, 99), st.integers(1, 99))
)
def test_closeness_of_any_points_is_in_0_to_1_and_symmetric(a, b, size):
    (found,) = point_closeness([a], [b], [size])
    assert 0 <= found <= 1
    assert point_closeness([b], [a], [size])[0] == found
