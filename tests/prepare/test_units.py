"""Boxes that look like shares of their images are a question to the user, with few false alarms."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from perpo_pipeline.config.sources import TableSource
from perpo_pipeline.errors import InputError
from perpo_pipeline.prepare.collect import Request
from perpo_pipeline.prepare.tables import read_table
from perpo_pipeline.prepare.units import Shape, in_pixels, looks_like_thousandths


def shapes(count: int, width: int, height: int, box: Any = (100, 200, 500, 700)) -> list[Shape]:
    return [Shape(f"line {n + 1}", box, width, height) for n in range(count)]


@pytest.mark.parametrize(
    ("size", "boxes"),
    [
        ((2000, 1500), 3),  # odds of 3 per box: 3, 9, 27
        ((1920, 1080), 5),  # odds of 2.0736: 18.49 with four boxes, 38.3 with five
        ((4000, 3000), 2),  # odds of 12
        ((1100, 1000), 32),  # odds of 1.1: 19.2 with 31 boxes
    ],
)
def test_a_doubt_needs_odds_of_20(size: tuple[int, int], boxes: int) -> None:
    assert looks_like_thousandths(shapes(boxes - 1, *size)) is None
    doubt = looks_like_thousandths(shapes(boxes, *size))
    assert doubt == (
        f"none of the {boxes} boxes reaches beyond 1000, though images are larger, for example "
        f"line 1, [100, 200, 500, 700] in an image of {size[0]} x {size[1]}"
    )


@pytest.mark.parametrize("size", [(640, 480), (1280, 720), (1000, 1000), (427, 640)])
def test_boxes_on_smaller_images_are_never_doubted(size: tuple[int, int]) -> None:
    """Thousandths would have led some of them out of the image."""
    assert looks_like_thousandths(shapes(100_000, *size, box=(10, 20, 400, 470))) is None


def test_images_of_both_sizes_speak_against_each_other() -> None:
    """2.07 for each large image, 0.3 for each small one that no box leaves."""
    large, small = shapes(10, 1920, 1080), shapes(10, 640, 480, box=(1, 2, 300, 400))
    assert looks_like_thousandths(large) is not None
    assert looks_like_thousandths(large + small) is None


def test_one_box_beyond_1000_or_below_0_is_enough_for_pixels() -> None:
    assert looks_like_thousandths(shapes(50, 2000, 1500)) is not None
    assert looks_like_thousandths(shapes(50, 2000, 1500, (-1, 0, 1001, 9))) is not None, "rounded"
    for box in [(0, 0, 1001.5, 9), (-1.2, 0, 9, 9)]:
        assert looks_like_thousandths(shapes(50, 2000, 1500) + shapes(1, 2000, 1500, box)) is None


def test_many_boxes_outside_their_images_but_none_beyond_1000_are_a_doubt_too() -> None:
    inside = shapes(17, 640, 480, box=(1, 2, 300, 400))
    outside = shapes(3, 640, 480, box=(100, 200, 900, 900))
    assert looks_like_thousandths(inside + outside) == (
        "3 of 20 boxes reach beyond their images, but none beyond 1000, for example line 1, "
        "[100, 200, 900, 900] in an image of 640 x 480"
    )
    assert looks_like_thousandths(inside + outside[:2]) is None, "two may be bad rows"
    assert looks_like_thousandths(2 * inside + outside) is None, "so may 3 of 37"


@given(
    st.lists(st.floats(0, 1000), min_size=4, max_size=4),
    st.integers(1, 5000),
    st.integers(1, 5000),
)
def test_thousandths_become_pixels(flat: list[float], width: int, height: int) -> None:
    x1, y1, x2, y2 = in_pixels(flat, "thousandths", width, height)
    assert (x1 * 1000 / width, x2 * 1000 / width) == pytest.approx((flat[0], flat[2]))
    assert (y1 * 1000 / height, y2 * 1000 / height) == pytest.approx((flat[1], flat[3]))


def read(tmp_path: Path, unit: Any, *truths: dict[str, Any]) -> list[dict[str, Any]]:
    Image.new("RGB", (2000, 1500)).save(tmp_path / "a.png")
    row = {"image": "a.png", "prompt": "Where?", "task": "grounding"}
    lines = [json.dumps(row | truth) for truth in truths]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    source = TableSource(source="jsonl", path=tmp_path / "data.jsonl", unit=unit)
    return list(read_table(source, Request("train", unit=source.unit)).rows)


THREE = [
    {"gt_box": [100, 200, 500, 900]},
    {"gt_boxes": [[0, 0, 500, 1000]]},
    {"gt_polygon": [0, 0, 500, 0, 500, 1000]},
]


def test_the_question_names_both_ways_to_go(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="are the true boxes in thousandths of the image"
    ) as caught:
        read(tmp_path, None, *THREE)
    message = str(caught.value)
    assert "set prepare.train.unit: thousandths" in message
    assert "set prepare.train.unit: px" in message
    assert str(tmp_path / "data.jsonl") in message


def test_each_answer_is_taken(tmp_path: Path) -> None:
    one, two, three = read(tmp_path, "px", *THREE)
    assert one["gt_box"] == [100, 200, 500, 900] and two["gt_boxes"] == [[0, 0, 500, 1000]]
    one, two, three = read(tmp_path, "thousandths", *THREE)
    assert one["gt_box"] == [200, 300, 1000, 1350] and two["gt_boxes"] == [[0, 0, 1000, 1500]]
    assert three["gt_polygon"] == [0, 0, 1000, 0, 1000, 1500]


def test_fractions_are_converted_where_they_are_declared(tmp_path: Path) -> None:
    truths = [{"gt_box": [0.1, 0.2, 0.5, 0.9]}] * 2
    with pytest.raises(InputError, match=r"or set prepare\.train\.unit: norm"):
        read(tmp_path, None, *truths)
    (row, _) = read(tmp_path, "norm", *truths)
    assert row["gt_box"] == pytest.approx([200, 300, 1000, 1350])


def test_a_point_is_converted_and_doubted_as_a_box_is(tmp_path: Path) -> None:
    truths = [{"gt_point": [500, 900]}] * 2
    assert [row["gt_point"] for row in read(tmp_path, "px", *truths)] == [[500, 900]] * 2
    assert read(tmp_path, "thousandths", *truths)[0]["gt_point"] == [1000, 1350]
    (row, _) = read(tmp_path, "norm", *[{"gt_point": [0.5, 0.9]}] * 2)
    assert row["gt_point"] == pytest.approx([1000, 1350])
    with pytest.raises(InputError, match="are the true boxes in thousandths of the image"):
        read(tmp_path, None, *truths * 2)


def test_a_converted_box_outside_the_image_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"outside the image .* \(converted from thousandths\)"):
        read(tmp_path, "thousandths", {"gt_box": [0, 0, 1200, 10]})


def test_real_boxes_are_doubted_only_where_they_are_in_thousandths(realdata: Path) -> None:
    """RefCOCO testA, 5,657 boxes: as they are; and on images three times as large, in both units.

    Draws of a few boxes stand for small datasets.
    """
    records = json.loads((realdata / "refcoco_gt" / "refcoco_testA.json").read_text())
    draw = random.Random(0)
    for scale, counts in ((1, (3, 10, 100)), (3, (3, 10, 100))):
        for count in [*counts * 20, len(records)]:
            pixels, thousandths = [], []
            for record in draw.sample(records, count):
                x, y, w, h = record["bbox"]
                width, height = record["width"], record["height"]
                flat, size = [x, y, x + w, y + h], (scale * width, scale * height)
                pixels.append(Shape("", [scale * value for value in flat], *size))
                shares = [v / (height if i % 2 else width) for i, v in enumerate(flat)]
                thousandths.append(Shape("", [round(1000 * share) for share in shares], *size))
            assert looks_like_thousandths(pixels) is None
            assert looks_like_thousandths(thousandths) is not None or count == 3
