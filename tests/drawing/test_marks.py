"""Marks on images: nothing is moved, kinds can be distinguished, labels do not cover each other."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpo_pipeline.drawing.marks import (
    ANSWER,
    BEFORE,
    TRUTH,
    box,
    describe,
    outline,
    point,
    truth_marks,
)
from perpo_pipeline.drawing.tags import place_tags

NO_TRUTH: dict[str, Any] = dict.fromkeys(["gt_box", "gt_boxes", "gt_polygon", "gt_point"])
# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
BLINDNESS = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
    "none": np.eye(3),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> Any:
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: Any) -> Any:
    """CIE L*a*b* (D65) of linear RGB."""
    t = TO_XYZ @ np.clip(rgb, 0, 1) / (TO_XYZ @ np.ones(3))
    x, y, z = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colours_differ_for_every_kind_of_colour_blindness(kind: str) -> None:
    """20 is far above a just noticeable difference, which is about 2.3."""
    seen = [lab(np.array(BLINDNESS[kind]) @ linear(s.colour)) for s in (TRUTH, BEFORE, ANSWER)]
    for one, other in itertools.combinations(seen, 2):
        assert np.linalg.norm(one - other) > 20


def test_kinds_differ_without_colour_too() -> None:
    assert len({TRUTH.dash, BEFORE.dash, ANSWER.dash}) == 3


@pytest.mark.parametrize("style", [TRUTH, ANSWER])
def test_white_labels_can_be_read(style: Any) -> None:
    """WCAG 2.1 asks for a contrast of 4.5 : 1."""
    luminance = TO_XYZ[1] @ linear(style.colour)
    assert 1.05 / (luminance + 0.05) >= 4.5


def test_all_truths_of_a_row_are_marked_and_one_that_is_given_twice_once() -> None:
    row = {
        **NO_TRUTH,
        "gt_box": [1.0, 2.0, 3.0, 4.0],
        "gt_boxes": [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]],
        "gt_polygon": [0.0, 0.0, 9.0, 0.0, 9.0, 9.0],
        "gt_point": [5.0, 5.0],
    }
    found = [(mark.kind, mark.bounds()) for mark in truth_marks(row)]
    assert found == [
        ("box", (1, 2, 3, 4)),
        ("box", (5, 6, 7, 8)),
        ("outline", (0, 0, 9, 9)),
        ("point", (5, 5, 5, 5)),
    ]
    assert truth_marks(NO_TRUTH) == []
    assert len(truth_marks({**NO_TRUTH, "gt_box": [1.0, 2.0, 3.0, 4.0]})) == 1


def test_marks_in_words() -> None:
    marks = [box((10, 20, 110.4, 220), TRUTH, "truth"), point((3, 4.6), ANSWER)]
    assert describe(marks) == "truth: box from x 10, y 20 to x 110, y 220; point at x 3, y 5"
    assert describe([outline((0, 0, 9, 0, 9, 9), TRUTH)]) == "outline from x 0, y 0 to x 9, y 9"


@given(
    st.lists(st.lists(st.floats(-50, 700), min_size=4, max_size=4), min_size=1, max_size=3),
    st.integers(200, 900),
    st.integers(200, 900),
)
def test_labels_stay_inside_the_image(boxes: list[list[float]], width: int, height: int) -> None:
    marks = [box(one, ANSWER, str(n)) for n, one in enumerate(boxes)]
    tags = place_tags(marks, 12.0, (width, height))
    assert [tag.mark for tag in tags] == marks
    for tag in tags:
        assert 0 <= tag.x <= width - tag.width and 0 <= tag.y <= height - tag.height


def test_labels_of_equal_boxes_do_not_cover_each_other() -> None:
    marks = [box((100, 100, 300, 300), TRUTH, name) for name in ("truth", "base", "PerPO 0.92")]
    marks.append(box((100, 100, 300, 300), TRUTH))
    tags = place_tags(marks, 12.0, (400, 400))
    assert len(tags) == 3, "a mark without a label has no tag"
    assert not any(a.overlaps(b) for a, b in itertools.combinations(tags, 2))
    assert not any(a.overlaps(b) for a, b in itertools.combinations(tags[::-1], 2))
