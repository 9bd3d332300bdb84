"""Marks in SVG and in pixels are where the numbers say."""

import base64
import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from perpo_pipeline.drawing.marks import ANSWER, TRUTH, box, outline, point
from perpo_pipeline.drawing.overlay import data_uri, overlay
from perpo_pipeline.drawing.raster import draw

SVG = "{http://www.w3.org/2000/svg}"


def test_the_overlay_has_the_coordinates_of_the_image() -> None:
    marks = [box((10, 20, 110, 220), TRUTH, "<b>&"), outline((0, 0, 9, 0, 9, 9), ANSWER)]
    text = overlay([*marks, point((3, 4), ANSWER)], 640, 480)
    root = ElementTree.fromstring(text)
    assert root.attrib["viewBox"] == "0 0 640 480" and root.attrib["aria-hidden"] == "true"
    lines = [e for e in root if e.tag == "polygon" and e.attrib["stroke"] != "#fff"]
    halos = [e for e in root if e.tag == "polygon" and e.attrib["stroke"] == "#fff"]
    assert len(lines) == len(halos) == 2
    assert lines[0].attrib["points"] == "10.00,20.00 110.00,20.00 110.00,220.00 10.00,220.00"
    assert "stroke-dasharray" not in lines[0].attrib and "stroke-dasharray" in lines[1].attrib
    assert [e.text for e in root.iter("text")] == ["<b>&"]
    assert "<text" not in overlay(marks, 640, 480, labels=False)
    plain = overlay(marks, 640, 480, styled=False)  # for pages that allow no style attribute
    assert " style=" in overlay(marks, 640, 480) and " style=" not in plain


def pixels_of(picture: Image.Image, colour: str) -> tuple[int, int, int, int]:
    """The box around the pixels of about this colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    rows, columns = np.nonzero(np.abs(np.asarray(picture, int) - wanted).max(axis=2) < 30)
    return columns.min(), rows.min(), columns.max(), rows.max()


@pytest.mark.parametrize(("size", "times"), [((640, 480), 1), ((64, 48), 8), ((500, 1), 1)])
def test_the_picture_has_the_box_in_its_pixels(size: tuple[int, int], times: int) -> None:
    image = Image.new("RGB", size, "#ffddcc")
    width, height = size
    true = (width * 0.25, height * 0.25, width * 0.75, height * 0.75)
    found = draw(image, [box(true, TRUTH)])
    assert found.size == (width * times, height * times)
    assert pixels_of(found, TRUTH.colour) == pytest.approx([v * times for v in true], abs=2.6)
    assert image.getpixel((0, 0)) == (255, 221, 204), "the given image stays as it is"


def test_a_picture_of_marks_of_all_kinds_beyond_the_image_and_inverted() -> None:
    image = Image.new("RGB", (300, 300), "white")
    marks = [
        box((-1e6, -1e6, 1e6, 1e6), ANSWER, "$x$"),
        box((200, 200, 100, 100), TRUTH),
        point((150, 250), ANSWER, "3"),
        outline((10, 10, 90, 10, 50, 80), ANSWER),
    ]
    found = draw(image, marks)
    assert found.size == (600, 600)
    left, top, right, bottom = pixels_of(found, TRUTH.colour)
    assert (left, top, right, bottom) == pytest.approx((200, 200, 400, 400), abs=2.6)


def test_a_small_image_is_embedded_exactly_and_a_large_one_is_reduced() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    kind, small = _decode(data_uri(Image.fromarray(noise)))
    assert kind == "data:image/png" and np.array_equal(np.asarray(small), noise)
    kind, large = _decode(data_uri(Image.new("RGB", (2000, 1000), "red")))
    assert kind == "data:image/jpeg" and large.size == (640, 320)


def _decode(uri: str) -> tuple[str, Image.Image]:
    kind, data = uri.split(";base64,")
    return kind, Image.open(io.BytesIO(base64.b64decode(data)))
