"""Boxes in another order are noticed by what is impossible; right boxes raise no doubt."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpo_pipeline.prepare.readings import ORDERS, doubt_boxes, to_xyxy_px
from perpo_pipeline.testbed.scenes import referring_example

FROM_XYXY = {
    "xyxy": lambda x1, y1, x2, y2: (x1, y1, x2, y2),
    "xywh": lambda x1, y1, x2, y2: (x1, y1, x2 - x1, y2 - y1),
    "cxcywh": lambda x1, y1, x2, y2: ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1),
    "yxyx": lambda x1, y1, x2, y2: (y1, x1, y2, x2),
    "yxhw": lambda x1, y1, x2, y2: (y1, x1, y2 - y1, x2 - x1),
}


def given_as(order: str, xyxy: Any) -> list[list[float]]:
    return [list(FROM_XYXY[order](*box)) for box in xyxy]


@pytest.fixture(scope="module")
def refcoco(realdata: Path) -> tuple[Any, Any]:
    """All true boxes of RefCOCO testA, xyxy, and the sizes of their images."""
    rows = json.loads((realdata / "refcoco_gt" / "refcoco_testA.json").read_text())
    boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in rows)])
    return boxes, np.array([(row["width"], row["height"]) for row in rows])


@pytest.mark.parametrize("order", ORDERS)
def test_no_order_that_is_right_is_doubted_on_real_boxes(refcoco: Any, order: str) -> None:
    boxes, sizes = refcoco
    raw = np.array(given_as(order, boxes))
    assert doubt_boxes(raw, sizes, order, None) is None
    for count in (2, 8, 20, 60):
        for start in range(0, len(raw) - count, 97):
            part = slice(start, start + count)
            assert doubt_boxes(raw[part], sizes[part], order, None) is None


@pytest.mark.parametrize("true", ORDERS)
@pytest.mark.parametrize("read", ORDERS)
def test_every_wrong_order_is_found_in_24_real_boxes(refcoco: Any, true: str, read: str) -> None:
    if true == read:
        return
    boxes, sizes = refcoco
    raw = np.array(given_as(true, boxes))
    for start in range(0, 5600, 700):  # expressions for one image follow each other: every 29th
        part = slice(start % 29, start + 700, 29)
        found = doubt_boxes(raw[part], sizes[part], read, None)
        assert found is not None and found.order == true, found


def test_the_boxes_of_scenes_raise_no_doubt() -> None:
    examples = [referring_example(0, index) for index in range(60)]
    boxes = [list(example.box_xyxy_px) for example in examples]
    assert doubt_boxes(boxes, [(64, 64)] * 60, "xyxy", None) is None


SIZES = st.tuples(st.integers(40, 3000), st.integers(40, 3000))


@st.composite
def right_data(draw: Any) -> tuple[Any, Any]:
    """Boxes that lie inside their images, small or large, anywhere or around one place."""
    count = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = rng.integers(40, 3000, (count, 2)).astype(float)
    if draw(st.booleans()):
        sizes[:] = sizes[0]
    sides = rng.beta(*draw(st.sampled_from([(1, 1), (1, 6), (8, 1)])), (count, 2))
    sides = np.maximum(sides, 0.02)
    places = rng.beta(*draw(st.sampled_from([(1, 1), (0.3, 0.3), (4, 4), (1, 9)])), (count, 2))
    corners = places * (1 - sides)
    xyxy = np.hstack([corners, corners + sides]) * np.tile(sizes, 2)
    return xyxy, sizes


@given(right_data(), st.sampled_from(sorted(ORDERS)))
def test_boxes_that_lie_inside_their_images_raise_no_doubt(data: Any, order: str) -> None:
    boxes, sizes = data
    assert doubt_boxes(given_as(order, boxes), sizes, order, "px") is None


@given(right_data())
def test_bad_rows_among_right_ones_raise_no_doubt(data: Any) -> None:
    """Corners dragged the wrong way, all over the images: no order mends them and the rest."""
    spread = np.linspace(0.0, 500.0, 40).repeat(2).reshape(40, 2)
    right = np.hstack([spread, spread + 60.0])
    right[::5] = right[::5][:, [2, 3, 0, 1]]
    boxes, sizes = np.vstack([data[0], right]), np.vstack([data[1], [(700.0, 700.0)] * 40])
    assert doubt_boxes(boxes, sizes, "xyxy", None) is None


@given(
    right_data(), st.sampled_from(sorted(ORDERS)), st.sampled_from(["px", "norm", "thousandths"])
)
def test_reading_inverts_writing(data: Any, order: str, unit: str) -> None:
    boxes, sizes = data
    parts = {"px": np.ones(4), "norm": np.tile(sizes, 2), "thousandths": np.tile(sizes, 2) / 1000}
    raw = given_as(order, boxes / parts[unit])
    assert to_xyxy_px(np.array(raw), sizes, order, unit) == pytest.approx(boxes, abs=1e-6)


def test_the_figures_are_counted() -> None:
    """Two of four boxes have no width or height as corners; as corner and size all fit."""
    boxes = [[300, 10, 100, 200], [20, 90, 200, 30], [10, 10, 60, 60], [50, 40, 80, 90]]
    sizes = [(640, 480)] * 4
    found = doubt_boxes(boxes, sizes, "xyxy", None)
    assert found is not None and found.order == "xywh"
    assert found.figures == (
        "read as xyxy, 2 of 4 true boxes are impossible (2 without width or height, 0 beyond their "
        "image); read as xywh (x, y, width, height), none is"
    )
    assert found.sentence("train", ["box"]).endswith(
        "if that is right, set prepare.train.box: xywh"
    )
    assert found.sentence("train", []).endswith("rewrite the boxes as x1, y1, x2, y2")


def test_one_bad_box_is_a_bad_row_and_no_doubt() -> None:
    boxes = [[300, 10, 100, 200], [10, 10, 60, 60], [50, 40, 80, 90]]
    assert doubt_boxes(boxes, [(640, 480)] * 3, "xyxy", None) is None


def test_square_images_do_not_show_swapped_axes() -> None:
    boxes = given_as("xywh", [[300, 10, 400, 200], [200, 50, 260, 400], [5, 300, 90, 380]])
    found = doubt_boxes(boxes, [(500, 500)] * 3, "xyxy", None)
    assert found is not None and found.order == "xywh", "not yxhw, which fits them as well"
