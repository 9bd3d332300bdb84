"""Box formats and frames: the coordinate oracle, hand-derived geometry, and round trips."""

import math
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from perpo_pipeline.answers.boxes import (
    BOX_FORMATS,
    FRAMES,
    BoxFormat,
    clip_to_frame,
    format_box,
    format_boxes,
    get_box_format,
    parse_box,
    parse_boxes,
)
from perpo_pipeline.answers.formats import frame_fault
from perpo_pipeline.answers.frames import smart_resize
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.errors import ConfigError, InputError

# The published coordinate oracle: a box of an image of 640 x 428 in two families' own units.
ORACLE_SIZE = (640, 428)
ORACLE_BOX = (146, 137, 615, 415)

EXAMPLES = {
    "llava": "[0.12, 0.34, 0.56, 0.78]",
    "qwen-vl": "<box>(120,340),(560,780)</box>",
    "qwen2-vl": "<|box_start|>(120,340),(560,780)<|box_end|>",
    "qwen2.5-vl": '{"bbox_2d": [12, 34, 56, 78]}',
    "qwen3-vl": '{"bbox_2d": [120, 340, 560, 780]}',
    "internvl": "<box>[[120, 340, 560, 780]]</box>",
    "pixel": "[12, 34, 56, 78]",
    "glm-v": "<|begin_of_box|>[[120,340,560,780]]<|end_of_box|>",
    "gemma": '{"box_2d": [340, 120, 780, 560]}',
    "paligemma": "<loc0348><loc0123><loc0798><loc0573>",
    "florence-2": "<loc_120><loc_340><loc_560><loc_780>",
    "deepseek-vl2": "<|det|>[[120, 340, 559, 779]]<|/det|>",
    "deepseek-ocr": "<|det|>[[120, 340, 559, 779]]<|/det|>",
    "minicpm-v": "<box>120 340 560 780</box>",
    "kosmos-2": "<object><patch_index_0323><patch_index_0785></object>",
    "molmo": '<points x1="12.0" y1="34.0" x2="56.0" y2="78.0"></points>',
}
# What the example reads as where its unit is no whole number of hundredths: thousandths of 1023 and
# 999, centres of bins, and centres of the cells 3, 10 and 17, 24 of 32 (323 = 10 * 32 + 3, 785 = 24
# * 32 + 17).
READ = {
    "paligemma": (12300 / 1023, 34800 / 1023, 57300 / 1023, 79800 / 1023),
    "florence-2": (12.05, 34.05, 56.05, 78.05),
    "deepseek-vl2": (12000 / 999, 34000 / 999, 55900 / 999, 77900 / 999),
    "deepseek-ocr": (12000 / 999, 34000 / 999, 55900 / 999, 77900 / 999),
    "kosmos-2": (350 / 32, 1050 / 32, 1750 / 32, 2450 / 32),
}
# Half of these is how far a box may be from where it is read: one unit of the frame, or twice a
# cell, because a box of one row or one column of cells is read from edge to edge.
UNITS = {
    "llava": 100,
    "paligemma": 1023,
    "deepseek-vl2": 999,
    "deepseek-ocr": 999,
    "kosmos-2": 16,
    "my_formats:minigpt": 100,
    "my_formats:cells": 16,
}

# A user's own: MiniGPT-v2's `{<x1><y1><x2><y2>}`, hundredths of the frame.
OWN = "my_formats:minigpt"
OWN_FORMAT = BoxFormat(
    "minigpt",
    re.compile(r"\{" + "".join(rf"<(?P<{name}>\d+)>" for name in ("x1", "y1", "x2", "y2")) + r"\}"),
    "{{<{x1}><{y1}><{x2}><{y2}>}}",
    100.0,
    instruction="[refer] where is {expression}?",
)
# Cells of a user's own: 32 x 32 of them.
CELLS = replace(
    OWN_FORMAT,
    name="cells",
    pattern=re.compile(r"#(?P<first>\d+)-(?P<last>\d+)"),
    template="#{first}-{last}",
    scale=32.0,
    cells=True,
)
# What the user may get wrong in a format.
BROKEN = {
    "nameless": {"pattern": re.compile(r"<(?P<x1>\d+)><(?P<y1>\d+)>")},
    "uncompiled": {"pattern": OWN_FORMAT.pattern.pattern},
    "misspelt": {"template": "{{<{x1}><{y1}><{x2}><{y3}>}}"},
    "numeric": {"template": "{{<{x1:d}><{y1}><{x2}><{y2}>}}"},
    "unread": {"template": "[{x1}, {y1}, {x2}, {y2}]"},
    "swapped": {"template": "{{<{y1}><{x1}><{y2}><{x2}>}}"},
    "scaleless": {"scale": 0.0},
    "framed": {"frame": "padded"},
    "pointless": {"point_pattern": re.compile(r"<(?P<x1>\d+)>")},
    "stringed": {"point_pattern": r"(?P<x1>\d+) (?P<y1>\d+)"},
    "crosswise": {"point_pattern": re.compile(r"\[(?P<y1>\d+), (?P<x1>\d+)\]")},
    "unpointed": {"point_pattern": re.compile(r"<(?P<x1>\d+)><(?P<y1>\d+)>")},
    "misnamed": {"point_pattern": re.compile("(?P<x1>1)(?P<y1>2)"), "point_template": "{x1}{y1}"},
    "outside": {"around": "<a></a>"},
    "uncelled": {"cells": True, "pattern": CELLS.pattern, "template": "{x1}-{y1}", "scale": 32.0},
    "binned": {"bins": True, "scale": None},
    "fractional": {"cells": True, "pattern": CELLS.pattern, "scale": 32.5},
    "cornered": {"cells": True},
}
WORDED = "".join(rf"<(?P<{name}>[^>]*)>" for name in ("x1", "y1", "x2", "y2"))


@pytest.fixture(scope="module", autouse=True)
def own_module() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        module = types.ModuleType("my_formats")
        module.minigpt = OWN_FORMAT
        module.mute = BoxFormat("mute", OWN_FORMAT.pattern, "", None, instruction="where?")
        for name, changes in BROKEN.items():
            setattr(module, name, replace(OWN_FORMAT, **changes))
        module.cells = CELLS
        module.same = replace(OWN_FORMAT, point_pattern=OWN_FORMAT.pattern)
        module.pointing = replace(
            OWN_FORMAT,
            point_template="({y};{x})",
            point_pattern=re.compile(r"\((?P<y1>\d+);(?P<x1>\d+)\)"),
        )
        module.worded = replace(OWN_FORMAT, pattern=re.compile(WORDED))
        module.resized_only = replace(OWN_FORMAT, frame="resized")
        patch.setitem(sys.modules, "my_formats", module)
        yield


def test_qwen2_vl_writes_the_oracle_box_in_thousandths():
    text = format_box(ORACLE_BOX, "qwen2-vl", frame="full", image_size=ORACLE_SIZE)
    assert text == "<|box_start|>(228,320),(961,970)<|box_end|>"


def test_qwen25_vl_writes_the_oracle_box_in_pixels_of_the_resized_image():
    resized = smart_resize(ORACLE_SIZE)
    assert resized == (644, 420)
    text = format_box(
        ORACLE_BOX, "qwen2.5-vl", frame="resized", image_size=ORACLE_SIZE, resized=resized
    )
    assert text == '{"bbox_2d": [147, 134, 619, 407]}'


@pytest.mark.parametrize("name", BOX_FORMATS)
def test_each_format_reads_and_writes_its_example(name: str):
    """(12, 34, 56, 78) in an image of 100 x 100."""
    options = {"frame": "full", "image_size": (100, 100)}
    assert format_box((12, 34, 56, 78), name, **options) == EXAMPLES[name]
    expected = READ.get(name, (12, 34, 56, 78))
    assert parse_box(EXAMPLES[name], name, **options) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("frame", "image_size", "expected"),
    [
        ("full", (200, 100), (50, 25, 150, 100)),
        ("crop", (200, 100), (75, 25, 125, 100)),
        ("pad", (200, 100), (50, 0, 150, 150)),
        ("crop", (100, 200), (25, 75, 75, 150)),
        ("pad", (100, 200), (0, 50, 100, 200)),
        ("pad", (101, 200), (50 - 49, 50, 150 - 49, 200)),
        ("crop", (101, 200), (25.25, 49.5 + 25.25, 75.75, 49.5 + 101)),
        ("crop", (200, 101), (49.5 + 25.25, 25.25, 49.5 + 75.75, 101)),
    ],
)
def test_a_box_is_read_in_the_frame_it_was_written_in(frame, image_size, expected):
    """[.25, .25, .75, 1]: the crop of 200 x 100 starts at x = 50, the pad at y = -50.

    An odd difference of the edges is padded by the lower half on the left or top: 99 // 2 = 49.
    """
    found = parse_box("[0.25, 0.25, 0.75, 1.0]", "llava", frame=frame, image_size=image_size)
    assert found == pytest.approx(expected)


def test_pixels_of_the_resized_image_are_scaled_back_edge_by_edge():
    found = parse_box(
        '{"bbox_2d": [10, 10, 20, 50]}',
        "qwen2.5-vl",
        frame="resized",
        image_size=(200, 50),
        resized=(100, 100),
    )
    assert found == (20, 5, 40, 25)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("llava", "The box is [0.1,0.2, .3 ,0.4]."),
        ("llava", "[0.1, 0.2, 0.3, 0.4] or else [0.5, 0.5, 0.6, 0.6]"),
        ("llava", "[see note] [0.1, 0.2, 0.3] [0.1, 0.2, 0.3, 0.4]"),
        ("llava", "[\n0.10, 0.20,\n0.300, 0.4\n]"),
        ("qwen-vl", "<ref>the cat</ref><box>(100,200),(300,400)</box>"),
        ("qwen2-vl", "(100, 200), (300, 400)"),
        ("qwen2-vl", "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,200),(300,400)"),
        ("qwen3-vl", '```json\n[\n\t{"bbox_2d": [100, 200, 300, 400], "label": "cat"}\n]\n```'),
        ("qwen3-vl", '{"label": "cat [1, 2, 3, 4]", "bbox_2d":[100,200,300,400' + "]"),
        ("internvl", "<ref>cat</ref><box>[[100, 200, 300, 400]]</box>"),
        ("internvl", "cat[[100, 200, 300, 400], [0, 0, 1, 1]]"),
    ],
)
def test_the_first_box_of_a_real_answer_is_read(name: str, text: str):
    found = parse_box(text, name, frame="full", image_size=(10, 10))
    assert found == pytest.approx((1, 2, 3, 4))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("llava", ""),
        ("llava", "I cannot see it."),
        ("llava", "0.1, 0.2, 0.3, 0.4"),
        ("llava", "[0.1, 0.2, 0.3]"),
        ("llava", "[0.1, 0.2, 0.3, 0.4, 0.5]"),
        ("llava", "[0.1, 0.2, 0.3, 0.4"),
        ("llava", "[0.1 0.2 0.3 0.4]"),
        ("llava", "[0.1.2, 0.2, 0.3, 0.4]"),
        ("llava", "[nan, 0.2, 0.3, 0.4]"),
        ("llava", "[1e-1, 0.2, 0.3, 0.4]"),
        ("llava", "[\u0660.1, 0.2, 0.3, 0.4]"),
        ("llava", "[0.1, 0.2, 0.3, " + "9" * 400 + "]"),
        ("llava", "[0.1, 0.2, 0.3, 1" + "0" * 300 + "]"),
        ("pixel", "[1, 2, 3, 1000000001]"),
        ("llava", "(0.1,0.2),(0.3,0.4)"),
        ("qwen2-vl", "[100, 200, 300, 400]"),
        ("qwen3-vl", "[100, 200, 300, 400]"),
    ],
)
def test_text_that_breaks_the_rule_of_its_format_is_unparsed(name: str, text: str):
    assert parse_box(text, name, frame="full", image_size=(10, 10)) is None


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("llava", "[0.5, 0.5, 1.02, 0.6]", (5, 5, 10.2, 6)),
        ("llava", "[-3, 0.5, 1, 0.6]", (-30, 5, 10, 6)),
        ("llava", "[10, 20, 30, 40]", (100, 200, 300, 400)),
        ("llava", "[10, 20, 30, 40] [0.1, 0.2, 0.3, 0.4]", (100, 200, 300, 400)),
        ("qwen2-vl", "(100,200),(300,4000)", (1, 2, 3, 40)),
        ("internvl", "[[100, 200, 300, 1100]]", (1, 2, 3, 11)),
        ("pixel", "[1, 2, 3, 1000000000]", (1, 2, 3, 1e9)),
    ],
)
def test_a_box_that_reaches_out_of_the_frame_is_read_as_it_stands(name, text, expected):
    """In an image of 10 x 10: neither clipped nor unparsed."""
    found = parse_box(text, name, frame="full", image_size=(10, 10))
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl"])
@pytest.mark.parametrize(
    ("text", "is_read"),
    [
        ("[{'bbox_2d': [1, 2, 3, 4], 'label': 'cat'}]", True),
        ("{'bbox_2d': (1, 2, 3, 4)}", True),
        ('{"bbox_2d": [1, 2, 3, 4, ], "label": "cat"}', True),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a cat on', True),
        ('{"bbox_2d": [1, 2, 3, 4', False),
        ('{"bbox_2d": ["1", "2", \'3\', " 4 "]}', True),
        ('{"bbox_2d": [[1, 2, 3, 4]]}', True),
        ('{"bbox_2d": [ [1, 2, 3, 4], [5, 6, 7, 8]]}', True),
        ('{"bbox_2d"\uff1a[1\uff0c2\uff0c 3, 4]}', True),
        ('{"bbox_2d": [1, 2, 3]}', False),
        ('{"bbox_2d": [1, 2, 3, 4, 5]}', False),
        ('{"bbox_2d": [1, 2, 3, "four"]}', False),
        ('{"bbox_2d": [[[1, 2, 3, 4]]]}', False),
        ('{"bbox_2d": null}', False),
        ("{bbox_2d: [1, 2, 3, 4]}", False),
        ('{"bbox": [1, 2, 3, 4]}', False),
        ('{"box_2d": [1, 2, 3, 4]}', False),
        ("[1, 2, 3, 4]", False),
        ('{"bbox_2d": [1, 2, 3,, 4]}', False),
    ],
)
def test_json_is_read_as_models_write_it(name: str, text: str, is_read: bool):
    """In an image of as many pixels as either format has units."""
    options = {"frame": "resized", "image_size": (1000, 1000), "resized": (1000, 1000)}
    found = parse_box(f"```json\n{text}\n```", name, **options)
    assert found == ((1, 2, 3, 4) if is_read else None)


def test_an_inverted_box_is_parsed_as_it_was_written():
    found = parse_box("[0.9, 0.2, 0.1, 0.4]", "llava", frame="full", image_size=(10, 10))
    assert found == pytest.approx((9, 2, 1, 4))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("llava", "I cannot see it.", []),
        ("llava", "[0.1, 0.2, 0.3, 0.4] and [0.5, 0.5, 1, 1]", [(1, 2, 3, 4), (5, 5, 10, 10)]),
        (
            "llava",
            "[10, 20, 30, 40] [0.1, 0.2, 0.3, 0.4]",
            [(100, 200, 300, 400), (1, 2, 3, 4)],
        ),
        ("pixel", "[10000000000, 2, 3, 4] [1, 2, 3, 4]", [None, (1, 2, 3, 4)]),
        ("internvl", "[[100, 200, 300, 400], [0, 0, 1000, 1000]]", [(1, 2, 3, 4), (0, 0, 10, 10)]),
        ("qwen-vl", "(0,0),(100,100),(200,200),(300,300)", [(0, 0, 1, 1), (2, 2, 3, 3)]),
        (
            "qwen3-vl",
            '[{"bbox_2d": [100, 200, 300, 400]}, {"bbox_2d": [0, 0]}, '
            '{"bbox_2d": [0, 0, 2e3, 0]}, {"bbox_2d": [0, 0, 2000, 0]}]',
            [(1, 2, 3, 4), (0, 0, 20, 0)],
        ),
        (OWN, "{<10><20><30><40>}{<0><0><50><50>}", [(1, 2, 3, 4), (0, 0, 5, 5)]),
        (
            "my_formats:cells",
            "#0-1023 #0-0",
            [(5 / 32, 5 / 32, 315 / 32, 315 / 32), (0, 0, 5 / 16, 5 / 16)],
        ),
    ],
)
def test_every_box_of_an_answer_is_read_in_order(name: str, text: str, expected: list):
    found = parse_boxes(text, name, frame="full", image_size=(10, 10))
    assert [box is None for box in found] == [box is None for box in expected]
    for box, true in zip(found, expected, strict=True):
        assert box is None or box == pytest.approx(true)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet='[](),. 01"bx2d_:', max_size=60), st.sampled_from(list(BOX_FORMATS)))
def test_the_first_of_several_boxes_is_the_one_that_is_read_alone(text: str, name: str):
    options = {"frame": "crop", "image_size": (30, 20)}
    found = parse_boxes(text, name, **options)
    assert parse_box(text, name, **options) == (found[0] if found else None)


def test_a_long_gap_after_a_point_is_read_in_time():
    """Time that grows with the square of the gap would be minutes."""
    gap = " " * 100_000
    size = {"frame": "full", "image_size": (10, 10)}
    assert parse_box(f"(1,2){gap}x", "qwen-vl", **size) is None
    for json in (f'"bbox_2d": [{gap}x', f'"bbox_2d": [1{gap}x', f'"bbox_2d": ["{gap}1{gap}"{gap}x'):
        assert parse_box(json, "qwen3-vl", **size) is None


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet='[]()<>{},.:-0123456789 bx2d_"\n', max_size=60), st.sampled_from(FRAMES))
def test_any_text_is_read_or_unparsed_and_nothing_else(text, frame):
    for name in BOX_FORMATS:
        found = parse_box(text, name, frame=frame, image_size=(30, 20), resized=(28, 28))
        assert found is None or all(map(math.isfinite, found))


# --- round trips ---------------------------------------------------------------------------------

sizes = st.tuples(st.integers(1, 2000), st.integers(1, 2000))
shares = st.tuples(*[st.floats(0, 1)] * 4)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("name", [*BOX_FORMATS, OWN, "my_formats:cells"])
@settings(max_examples=30, deadline=None)
@given(image_size=sizes, resized=sizes, share=shares)
def test_a_written_box_reads_as_itself_up_to_rounding(name, frame, image_size, resized, share):
    """Half a written unit: that of the format, a thousandth or one of the frame's pixels."""
    width, height = image_size
    box = (
        min(share[0], share[2]) * width,
        min(share[1], share[3]) * height,
        max(share[0], share[2]) * width,
        max(share[1], share[3]) * height,
    )
    options = {"frame": frame, "image_size": image_size, "resized": resized}
    box = clip_to_frame(box, **options)
    assume(box is not None)
    text = format_box(box, name, **options)
    found = parse_box(text, name, **options)
    edges = {"crop": [min(image_size)] * 2, "pad": [max(image_size)] * 2}.get(frame, image_size)
    pixels = resized if frame == "resized" else edges
    in_pixels = name in ("qwen2.5-vl", "pixel")
    units = pixels if in_pixels else [UNITS.get(name, 1000)] * 2
    assert found is not None
    for axis in range(4):
        assert found[axis] == pytest.approx(
            box[axis], abs=0.501 * edges[axis % 2] / units[axis % 2]
        )
    if frame == "full" and name in ("llava", "qwen3-vl", "florence-2", "paligemma"):
        assert format_box(found, name, **options) == text  # what was rounded once stays


@settings(max_examples=60, deadline=None)
@given(sizes, shares)
def test_pixels_of_the_image_as_qwen_resizes_it_come_back_to_half_a_pixel(image_size, share):
    assume(max(image_size) / min(image_size) <= 200)
    (width, height), resized = image_size, smart_resize(image_size)
    x1, x2 = sorted((share[0] * width, share[2] * width))
    y1, y2 = sorted((share[1] * height, share[3] * height))
    options = {"frame": "resized", "image_size": image_size, "resized": resized}
    found = parse_box(
        format_box((x1, y1, x2, y2), "qwen2.5-vl", **options), "qwen2.5-vl", **options
    )
    assert found is not None
    for axis, value in enumerate((x1, y1, x2, y2)):
        half_a_pixel = 0.501 * image_size[axis % 2] / resized[axis % 2]
        assert found[axis] == pytest.approx(value, abs=half_a_pixel)


# --- asking --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "question"),
    [
        (
            "llava",
            "Please provide the bounding box coordinate of the region this sentence describes: "
            "the {red} cat",
        ),
        (
            "internvl",
            "Please provide the bounding box coordinate of the region this sentence describes: "
            "<ref>the {red} cat</ref>",
        ),
        (
            "qwen2.5-vl",
            "Locate the {red} cat, output its bbox coordinates using JSON format.",
        ),
        (
            "qwen3-vl",
            'Locate every object that matches the description "the {red} cat" in the image. '
            "Report bbox coordinates in JSON format.",
        ),
        (
            "glm-v",
            "Please pinpoint the bounding box [[x1,y1,x2,y2], …] in the image as per the given "
            "description. the {red} cat",
        ),
        ("gemma", 'What\'s the bounding box for the "the {red} cat" in the image?'),
        ("paligemma", "detect the {red} cat"),
        ("florence-2", "Locate the phrases in the caption: the {red} cat"),
        ("deepseek-vl2", "<|ref|>the {red} cat<|/ref|>."),
        ("deepseek-ocr", "Locate <|ref|>the {red} cat<|/ref|> in the image."),
        (
            "minicpm-v",
            "Please provide the bounding box coordinate of the region this sentence describes: "
            "<ref>the {red} cat</ref>",
        ),
        ("kosmos-2", "<grounding><phrase>the {red} cat</phrase>"),
        ("molmo", "Point to the {red} cat"),
        (OWN, "[refer] where is the {red} cat?"),
    ],
)
def test_each_format_asks_its_familys_question(name: str, question: str):
    assert get_box_format(name).ask("the {red} cat") == question


@pytest.mark.parametrize("name", [*BOX_FORMATS, OWN])
@given(st.text())
def test_an_expression_is_found_again_in_its_question(name: str, expression: str):
    box_format = get_box_format(name)
    assert box_format.asked_for(box_format.ask(expression)) == expression
    assert box_format.asked_for("How many cats are there?") is None


# --- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "box",
    [(5, 0, 1, 9), (0, 9, 5, 1), (0, 0, math.nan, 5), (0, 0, math.inf, 5)],
    ids=["x inverted", "y inverted", "NaN", "infinite"],
)
def test_what_is_not_a_box_is_not_written(box):
    with pytest.raises(InputError, match="is not a box"):
        format_box(box, "llava", frame="full", image_size=(10, 10))


def test_a_box_that_a_centre_crop_cuts_is_refused_until_it_is_clipped():
    """The crop of 200 x 100 shows x from 50 to 150."""
    box, options = (20, 10, 100, 90), {"frame": "crop", "image_size": (200, 100)}
    with pytest.raises(InputError, match="reaches out of the frame 'crop'"):
        format_box(box, "llava", **options)
    clipped = clip_to_frame(box, **options)
    assert clipped == (50, 10, 100, 90)
    assert format_box(clipped, "llava", **options) == "[0.00, 0.10, 0.50, 0.90]"
    assert clip_to_frame((0, 0, 50, 100), **options) is None


def test_an_annotation_a_fraction_of_a_unit_beyond_the_edge_is_written_at_the_edge():
    """COCO has boxes that end at 640.01 of 640."""
    text = format_box((0, 0, 640.01, 480), "llava", frame="full", image_size=(640, 480))
    assert text == "[0.00, 0.00, 1.00, 1.00]"


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"box_format": "lava"},
            "there is no box format 'lava'; did you mean 'llava'? there are llava, ",
        ),
        ({"box_format": "no.such.module:it"}, "cannot be imported"),
        ({"box_format": "math:pi"}, "has type float, not BoxFormat"),
        ({"box_format": "math:tau_squared"}, "cannot be imported"),
        ({"box_format": "my_formats:mute"}, "needs one {expression}"),
        ({"box_format": "my_formats:nameless"}, "has no group x2, y2"),
        ({"box_format": "my_formats:uncompiled"}, "has no group x1, y1, x2, y2"),
        ({"box_format": "my_formats:misspelt"}, "cannot write a box and read it: KeyError: 'y3'"),
        ({"box_format": "my_formats:numeric"}, "cannot write a box and read it: ValueError"),
        (
            {"box_format": "my_formats:unread"},
            "writes (100.0, 200.0, 300.0, 400.0) as '[10, 20, 30, 40]' and reads that as None",
        ),
        ({"box_format": "my_formats:swapped"}, "as '{<20><10><40><30>}' and reads that as (200"),
        (
            {"box_format": "my_formats:scaleless"},
            "the scale of the box format 'my_formats:scaleless' is 0.0",
        ),
        (
            {"box_format": "my_formats:pointless"},
            "the point_pattern of the box format 'my_formats:pointless' lacks the groups x1 and y1",
        ),
        (
            {"box_format": "my_formats:stringed"},
            "the point_pattern of the box format 'my_formats:stringed' lacks the groups x1 and y1",
        ),
        (
            {"box_format": "my_formats:crosswise"},
            "'my_formats:crosswise' writes (100.0, 200.0) as '[10, 20]' and reads that "
            "as (200.0, 100.0)",
        ),
        (
            {"box_format": "my_formats:unpointed"},
            "'my_formats:unpointed' writes (100.0, 200.0) as '[10, 20]' and reads that as None",
        ),
        (
            {"box_format": "my_formats:misnamed"},
            "'my_formats:misnamed' cannot write a point and read it: KeyError: 'x1'",
        ),
        (
            {"box_format": "my_formats:outside"},
            "around the boxes of 'my_formats:outside', its around, needs one {boxes}",
        ),
        (
            {"box_format": "my_formats:uncelled"},
            "'my_formats:uncelled' cannot write a box and read it: KeyError: 'x1'",
        ),
        (
            {"box_format": "my_formats:binned"},
            "'my_formats:binned' writes bins, with the scale None and 0 decimals",
        ),
        (
            {"box_format": "my_formats:fractional"},
            "'my_formats:fractional' writes cells, with the scale 32.5 and 0 decimals",
        ),
        ({"box_format": "my_formats:cornered"}, "has no group first, last"),
        (
            {"box_format": "my_formats:framed"},
            "'my_formats:framed' needs a frame that does not exist: 'padded'",
        ),
        ({"frame": "padded"}, "there is no frame 'padded'"),
        ({"frame": "resized"}, "needs the size"),
        ({"frame": "resized", "resized": (0, 10)}, "resized is"),
        ({"image_size": (0, 10)}, "image_size is"),
    ],
)
def test_a_wrong_setting_is_named(options, message):
    valid = {"text": "[0, 0, 1, 1]", "box_format": "llava", "frame": "full", "image_size": (9, 9)}
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_box(**{**valid, **options})


@pytest.mark.parametrize("name", ["qwen2.5-vl", "my_formats:resized_only"])
def test_a_format_may_require_its_frame(name: str):
    """The built-in one and a user's own: the settings are refused in any other frame."""
    assert frame_fault(name, "resized") is None
    for frame in {*FRAMES} - {"resized"}:
        assert frame_fault(name, frame) == (
            f"box_format {name} needs the frame resized, not {frame}: set box_frame to resized"
        )
    with pytest.raises(ValueError, match="needs the frame resized, not full"):
        ModelConfig(box_format=name)
    assert all(frame_fault("llava", frame) is None for frame in FRAMES)


def test_a_users_own_format_is_taken_by_its_import_path():
    assert get_box_format(OWN) is OWN_FORMAT
    options = {"frame": "full", "image_size": (200, 100)}
    assert format_box((20, 30, 40, 50), OWN, **options) == "{<10><30><20><50>}"
    found = parse_box("at {<10><30><20><50>}", OWN, **options)
    assert found == pytest.approx((20, 30, 40, 50))


@pytest.mark.parametrize("fault", ["1 / 0", "raise RuntimeError('no licence')", "x ="])
def test_a_users_module_may_fail_in_any_way(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "failing_formats.py").write_text(fault)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be imported: \w+Error: "):
        get_box_format("failing_formats:mine")


@pytest.mark.parametrize("text", ["<a><20><30><40>", "<10><20><30><>", "<1e><20><30><40>"])
def test_a_users_pattern_that_finds_no_numbers_leaves_the_answer_unparsed(text: str):
    options = {"frame": "full", "image_size": (200, 100)}
    assert parse_box("<10><20><30><40>", "my_formats:worded", **options) is not None
    assert parse_box(text, "my_formats:worded", **options) is None


@settings(max_examples=200, deadline=None)
@given(sizes, st.sampled_from([28, 32]))
def test_smart_resize_equals_transformers(image_size, factor):
    oracle = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    assume(max(image_size) / min(image_size) <= 200)
    limits = {"factor": factor, "min_pixels": 56 * 56, "max_pixels": 28 * 28 * 1280}
    height, width = oracle.smart_resize(image_size[1], image_size[0], **limits)
    assert smart_resize(image_size, **limits) == (width, height)


def test_smart_resize_refuses_a_strip():
    with pytest.raises(InputError, match="too narrow"):
        smart_resize((2010, 10))


def test_a_format_of_cells_is_told_the_names_of_its_cells() -> None:
    with pytest.raises(ConfigError) as found:
        get_box_format("my_formats:uncelled")
    assert str(found.value.fix).endswith("both with the names first, last")


def test_a_format_that_writes_and_reads_its_own_points_is_taken() -> None:
    assert get_box_format("my_formats:pointing").point_template == "({y};{x})"
    with pytest.raises(ConfigError, match="as '\\[10, 20\\]' and reads that as None"):
        get_box_format("my_formats:same")


# --- several boxes -------------------------------------------------------------------------------


def test_several_boxes_of_glm_stand_in_one_pair_of_marks() -> None:
    """As its question has them: [[x1,y1,x2,y2], ...]."""
    options = {"frame": "full", "image_size": (1000, 1000)}
    written = format_boxes([(1, 2, 3, 4), (5, 6, 7, 8)], "glm-v", **options)
    assert written == "<|begin_of_box|>[[1,2,3,4],[5,6,7,8]]<|end_of_box|>"
    assert format_boxes([], "glm-v", **options) == "<|begin_of_box|>[]<|end_of_box|>"
    assert format_boxes([], "llava", **options) == "[]"


def test_the_box_that_reaches_out_of_the_frame_is_named() -> None:
    with pytest.raises(InputError, match=r"the box \[0, 0, 1200, 9\] reaches out"):
        format_boxes(
            [(1, 2, 3, 4), (0, 0, 1200, 9)], "glm-v", frame="full", image_size=(1000, 1000)
        )


def test_what_stands_around_boxes_counts_only_where_it_is_set() -> None:
    """So that the fingerprint of a user's older format stays."""
    usual = OWN_FORMAT.describe()
    assert {"around", "separator", "y_first", "bins", "cells"}.isdisjoint(usual)
    changed = replace(OWN_FORMAT, around="<a>{boxes}</a>", separator=";", y_first=True)
    assert changed.describe() == usual | {
        "around": "<a>{boxes}</a>",
        "separator": ";",
        "y_first": True,
    }
