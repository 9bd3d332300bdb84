"""Truth is checked: boxes and polygons lie in the image and have an area."""

import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from perpo_pipeline.answers.truth import polygon_fault, truth_fault, xyxy_from_xywh
from perpo_pipeline.json_files import RowFault
from perpo_pipeline.prepare.fields import without_first_place

SIZE = (20, 10)
SQUARE = [1, 1, 9, 1, 9, 9, 1, 9]


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([1, 1, 9, 1], "three or more points"),
        ([1, 1, 9, 1, 9], "three or more points"),
        ([1, 1, 9, 1, 9, 9, 1], "three or more points"),
        ([[1, 1], [9, 1], [9, 9]], "three or more points"),
        (["a"] * 6, "not all finite numbers"),
        ([1, 1, 9, 1, 9, float("nan")], "not all finite numbers"),
        ([1, 1, 9, 1, 9, 11], "outside the image of 20x10"),
        ([1, 1, -1, 1, 9, 9], "outside the image"),
        ([1, 1, 5, 5, 9, 9], "has no area"),
        ([1, 1, 1, 1, 1, 1], "has no area"),
        ([1, 1, 9, 9, 9, 1, 1, 8], "Self-intersection"),
    ],
)
def test_a_faulty_polygon_is_reported(polygon: object, message: str) -> None:
    fault = polygon_fault(polygon, *SIZE)
    assert fault is not None and message in fault


@pytest.mark.parametrize(
    "polygon", [SQUARE, SQUARE[::-1], [1, 1, 9, 1, 5, 9], [-0.5, -0.5, 20.5, 0, 20, 10.5]]
)
def test_a_simple_polygon_is_taken_in_either_direction(polygon: list[float]) -> None:
    assert polygon_fault(polygon, *SIZE) is None


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 10)), min_size=3, max_size=6))
def test_a_polygon_is_taken_exactly_if_shapely_calls_it_valid_and_it_has_an_area(
    points: list[tuple[int, int]],
) -> None:
    shape = shapely.Polygon(points)
    flat = [value for point in points for value in point]
    assert (polygon_fault(flat, *SIZE) is None) == (shape.is_valid and shape.area > 0)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (3, "not a list of boxes"),
        ("all", "not a list of boxes"),
        ([[1, 1, 2, 2], [5, 5, 4, 6]], "gt_boxes[1] is inverted or empty"),
        ([[1, 1, 2, 2, 3]], "gt_boxes[0] is not four finite numbers"),
        ([[1, 1, 30, 2]], "gt_boxes[0] [1, 1, 30, 2] is outside"),
    ],
)
def test_each_of_several_boxes_is_checked(boxes: object, message: str) -> None:
    fault = truth_fault(None, boxes, None, *SIZE)
    assert fault is not None and message in fault


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([0, 0, 1, 1], "is within the first pixel: it looks normalised; give pixels"),
        (
            [0.5, 0.25, 0.75, 0.5],
            "is within the first pixel: it looks normalised; give pixels",
        ),
        ([-0.5, -0.5, 1, 1], "is within the first pixel: it looks normalised; give pixels"),
        ([3, 3, 3.5, 4.5], "is smaller than a pixel"),  # 0.5 x 1.5 = 0.75
        ([3, 3, 4, 4], None),
        ([3, 3, 3.5, 5], None),  # 0.5 x 2 = 1
        ([0, 0, 1, 2], None),
    ],
)
def test_a_box_has_the_area_of_a_pixel(box: list[float], message: str | None) -> None:
    assert truth_fault(box, None, None, *SIZE) == (message and f"gt_box {message}")
    assert truth_fault(None, [box], None, *SIZE) == (message and f"gt_boxes[0] {message}")


def test_an_empty_list_of_boxes_says_that_there_is_no_target() -> None:
    assert truth_fault(None, [], None, *SIZE) is None
    for box, polygon, name in (([1, 1, 2, 2], None, "gt_box"), (None, SQUARE, "gt_polygon")):
        fault = truth_fault(box, [], polygon, *SIZE)
        assert fault is not None and fault.endswith(f"no target, beside a {name}")
    fault = truth_fault(None, [], None, *SIZE, point=[1, 1])
    assert fault is not None and fault.endswith("no target, beside a gt_point")


def test_no_truth_at_all_is_no_fault_of_its_values() -> None:
    assert truth_fault(None, None, None, *SIZE) is None
    assert truth_fault([1, 1, 2, 2], [[1, 1, 2, 2], [3, 3, 4, 4]], SQUARE, *SIZE) is None


def test_width_and_height_become_the_other_corner() -> None:
    assert xyxy_from_xywh([468.3, 0.91, 171.7, 116.12]) == [468.3, 0.91, 640.0, 117.03]
    with pytest.raises(RowFault, match="not four finite numbers"):
        xyxy_from_xywh([1, 2, 3])


def test_the_placeholder_of_the_image_is_removed_from_a_question() -> None:
    assert without_first_place("<image>\nOCR this page. ") == "OCR this page."
