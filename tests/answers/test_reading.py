"""Many answers at once: the same as one at a time, and what points, polygons and numbers are."""

import math
import re
import sys
import types

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from perpo_pipeline.answers.boxes import (
    BOX_FORMATS,
    FRAMES,
    BoxFormat,
    format_box,
    parse_box,
    parse_boxes,
)
from perpo_pipeline.answers.reading import (
    read_box_lists,
    read_boxes,
    read_numbers,
    read_points,
    read_polygons,
)
from perpo_pipeline.errors import ConfigError

NOWHERE = (math.nan,) * 4
NUMBERS = [
    "0",
    "1",
    "-0",
    "1.",
    ".5",
    "-.5",
    "0.25",
    "+0.5",
    "1e-1",
    "nan",
    "inf",
    "-",
    ".",
    "0.1.2",
    "640",
    "1000",
    "1010",
    "1011",
    "-10",
    "9" * 400,
    "0." + "0" * 400 + "1",
    "0" * 400 + "1",
    "0.1000000000000000055511151231257827",
    "\u0661",
    "\uff11",
    "0x1",
    "1_0",
    "0,5",
]
# All that Python's `re` takes for white space, and some that it does not.
SPACES = [c for c in map(chr, range(0x3001)) if c.isspace()] + ["\u200b", "\ufeff", "\u180e"]
PIECES = [
    "[",
    "]",
    "(",
    ")",
    ",",
    "), (",
    "{",
    "}",
    "[[",
    "]]",
    '"bbox_2d"',
    '"bbox_2d": [',
    "'bbox_2d': [[",
    '"1", "2"',
    "\uff0c",
    ":",
    "<box>",
    "the box is ",
    "[0.1, 0.2, 0.3, 0.4]",
    "(100,200),(300,400)",
    "[0.9, 0.2, 0.1, 0.4]",
    '{"bbox_2d": [1, 2, 3, 4]}',
    "\x00",
    "\U0001f600",
    "[1, 2, 3]",
    "[1, 2, 3, 4, 5]",
    "<loc0348><loc0123><loc0798><loc0573>",
    "<loc1024><loc0123>",
    "<loc_120><loc_340><loc_560><loc_999>",
    "<patch_index_0323><patch_index_0785>",
    "<box>",
    "</box>",
    "<|det|>",
    "<points ",
    'x="1.5" y="2"',
    " x1=\"12\" y1='34'",
    "1 2 3 4",
    " 5",
    "<",
    ">",
]
number = st.sampled_from(NUMBERS) | st.floats(0, 1).map(str) | st.integers(-20, 1100).map(str)
padded = st.tuples(st.sampled_from(["", "", " ", *SPACES]), number, st.sampled_from(["", " "])).map(
    "".join
)
SHAPES = (
    "[{},{},{},{}]",
    "({},{}),({},{})",
    "({},{}) ({},{})",
    '"bbox_2d" : [{},{},{},{}]',
    "[{},{},{}]",
    "[{},{},{},{},{}]",
    "[[{}, {}, {}, {}]]",
    "'bbox_2d': [\"{}\", '{}', {}\uff0c{},]",
    '"bbox_2d": [[{}, {}, {}, {}]]',
    "'box_2d' : [{},{},{},{}]",
    '"point": [{}, {}], "box_2d": [{},{}]',
    "<{},{},{},{}>",
    "<loc{}><loc{}><loc{}> <loc{}>",
    "<loc_{}><loc_{}><loc_{}><loc_{}>",
    "<patch_index_{}><patch_index_{}>",
    "<box>{} {} {} {}</box>",
    "is {} {} {} {}.",
    '<points x1="{}" y1="{}" x2="{}"  y2="{}" alt="a">',
)
boxed = st.builds(
    lambda shape, numbers: shape.format(*numbers),
    st.sampled_from(SHAPES),
    st.lists(padded, min_size=5, max_size=5),
)
nasty = st.lists(boxed | padded | st.sampled_from(PIECES) | st.text(max_size=5), max_size=6).map(
    "".join
)
size = st.tuples(st.integers(1, 2000), st.integers(1, 2000))
OWN = "my_answers:angled"
OWN_FORMAT = BoxFormat(
    "angled",
    re.compile(r"(?<=at )<(?P<x1>[^>]*)><(?P<y1>\d+)><(?P<x2>\d+)><(?P<y2>\d+)>"),
    "at <{x1}><{y1}><{x2}><{y2}>",
    100.0,
)


@pytest.fixture(scope="module", autouse=True)
def own_module():
    with pytest.MonkeyPatch.context() as patch:
        module = types.ModuleType("my_answers")
        module.angled = OWN_FORMAT
        patch.setitem(sys.modules, "my_answers", module)
        yield


def each_box(texts, name, frame, sizes, resized):
    """One text at a time."""
    return np.array(
        [
            parse_box(text, name, frame=frame, image_size=one, resized=other) or NOWHERE
            for text, one, other in zip(texts, sizes, resized, strict=True)
        ],
        dtype=float,
    ).reshape(-1, 4)


# --- boxes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("name", BOX_FORMATS)
@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.tuples(nasty, size, size), min_size=1, max_size=8))
def test_many_texts_give_exactly_what_each_gives_alone(name, frame, rows):
    texts, sizes, resized = zip(*rows, strict=True)
    options = {"frame": frame, "sizes": sizes, "resized": resized}
    expected = each_box(texts, name, frame, sizes, resized)
    np.testing.assert_array_equal(read_boxes(texts, name, **options), expected)
    lists = read_box_lists(texts, name, **options)
    assert len(lists) == len(texts)
    for found, (text, one, other) in zip(lists, rows, strict=True):
        alone = parse_boxes(text, name, frame=frame, image_size=one, resized=other)
        expected = np.array([box or NOWHERE for box in alone], dtype=float).reshape(-1, 4)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", ["[{}0,1,1,1]", "[0{},1,1,1]", "[0,1,1,1{}]"])
def test_every_character_there_is_counts_as_in_pythons_re(shape: str):
    """Before a number, within one and after one."""
    texts = [shape.format(chr(c)) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    found = read_boxes(texts, "internvl", frame="full", sizes=np.full((len(texts), 2), 1000))
    search = BOX_FORMATS["internvl"].pattern.search
    matched = [row for row, text in enumerate(texts) if search(text)]
    expected = np.full((len(texts), 4), np.nan)
    expected[matched] = [
        parse_box(texts[row], "internvl", frame="full", image_size=(1000, 1000)) for row in matched
    ]
    assert len(matched) > 25  # white space, most of it beyond ASCII, and digits
    np.testing.assert_array_equal(found, expected)


def test_rounding_to_a_float_is_pythons():
    """Halves between two floats, subnormals, and more digits than a float has."""
    numbers = [
        "0.1000000000000000055511151231257827021181583404541015625",
        "0.50000000000000005551115123125782702118158340454101562",
        "0.50000000000000005551115123125782702118158340454101563",
        "0." + "0" * 323 + "49406564584124654",
        "0." + "0" * 330 + "1",
        "0." + "3" * 5000,
        "." + "9" * 40,
    ]
    texts = [f"[{n},0,1,1]" for n in numbers]
    found = read_boxes(texts, "llava", frame="full", sizes=[(1, 1)] * len(texts))
    assert found[:, 0].tolist() == [float(n) for n in numbers]


@pytest.mark.parametrize("name", BOX_FORMATS)
def test_very_long_texts_are_read_in_time_and_to_their_end(name: str):
    box = format_box((0, 0, 1, 1), name, frame="full", image_size=(10, 10))
    noise = ["(" + " " * 200_000, "[1" * 200_000, "(1,2)" + " " * 200_000 + "x", "9" * 400_000]
    texts = [box, *(f"{part} {box} [0, 0, 1, 1]" for part in noise)]
    found = read_boxes(texts, name, frame="full", sizes=[(10, 10)] * len(texts))
    alone = parse_box(box, name, frame="full", image_size=(10, 10))
    assert [tuple(row) for row in found.tolist()] == [alone] * len(texts)


def test_many_rows_keep_their_order():
    """As many as Polars takes in several pieces."""
    values = np.arange(300_000)
    texts = pl.Series(values).cast(pl.String)
    texts = ("[" + texts + ", 0, 1, 1]").alias("anything")
    sizes = np.column_stack([values + 1, np.ones(len(values))])
    options = {"frame": "full", "sizes": sizes}
    np.testing.assert_allclose(read_boxes(texts, "pixel", **options)[:, 0], values)
    lists = read_box_lists(texts, "pixel", **options)
    np.testing.assert_allclose(np.concatenate(lists)[:, 0], values)
    np.testing.assert_array_equal(read_numbers(texts), values)


@pytest.mark.parametrize(
    "as_given",
    [
        list,
        tuple,
        np.array,
        pl.Series,
        pa.array,
        lambda texts: pa.array(texts, pa.large_string()),
        lambda texts: pa.array(texts).dictionary_encode(),
        lambda texts: pa.chunked_array([texts[:1], texts[1:]]),
    ],
    ids=["list", "tuple", "numpy", "polars", "arrow", "large", "dictionary", "chunked"],
)
@pytest.mark.parametrize("name", ["llava", OWN])
def test_texts_may_be_given_in_many_ways(name: str, as_given):
    texts = ["at <10><20><30><40>, [0.1, 0.2, 0.3, 0.4]", "none"]
    options = {"frame": "full", "sizes": [(10, 10), (10, 20)]}
    found = read_boxes(as_given(texts), name, **options)
    np.testing.assert_allclose(found, [(1, 2, 3, 4), NOWHERE])
    lists = read_box_lists(as_given(texts), name, **options)
    assert [boxes.shape for boxes in lists] == [(1, 4), (0, 4)]


@pytest.mark.parametrize("name", ["llava", OWN])
def test_a_null_is_an_answer_without_text(name: str):
    options = {"frame": "full", "sizes": [(10, 10)] * 2}
    for texts in ([None, "x"], pl.Series([None, "x"]), pa.array([None, "x"])):
        assert np.isnan(read_boxes(texts, name, **options)).all()
        assert [boxes.shape for boxes in read_box_lists(texts, name, **options)] == [(0, 4)] * 2
        assert np.isnan(read_points(texts, name, **options)).all()
        assert read_polygons(texts, name, **options) == [None, None]
        assert np.isnan(read_numbers(texts)).all()


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("10-20", 10, 20),
        ("option-4", 4, 4),
        ("-4", -4, -4),
        ("between 3 and -5", 3, -5),
        ("(-2)", -2, -2),
        ("H2O: -7-", -7, -7),
        ("...5", 5, 5),
        ("v1.5", np.nan, np.nan),
        ("two-3", 3, 3),
    ],
)
def test_a_hyphen_before_a_number_is_no_sign_for_the_first_and_the_last(
    text: str, first: float, last: float
) -> None:
    found = [read_numbers([text], "first")[0], read_numbers([text], "last")[0]]
    np.testing.assert_array_equal(found, [first, last])


@pytest.mark.parametrize("name", ["llava", OWN])
def test_no_texts_give_no_rows(name: str):
    for texts in ([], pl.Series([], dtype=pl.String), pa.array([], pa.string())):
        assert read_boxes(texts, name, frame="pad", sizes=[]).shape == (0, 4)
        assert read_points(texts, name, frame="pad", sizes=np.empty((0, 2))).shape == (0, 2)
        assert read_box_lists(texts, name, frame="pad", sizes=[]) == []
        assert read_polygons(texts, name, frame="pad", sizes=[]) == []
        assert read_numbers(texts).shape == (0,)


@pytest.mark.parametrize("name", BOX_FORMATS)
def test_half_a_surrogate_pair_is_a_character_that_means_nothing(name: str):
    box = format_box((1, 1, 2, 2), name, frame="full", image_size=(10, 10))
    texts = ["\ud800" + box + "\udfff", box.replace("1", "\ud8001"), "\ud800"]
    options = {"frame": "full", "sizes": [(10, 10)] * 3}
    expected = each_box(texts, name, "full", options["sizes"], [None] * 3)
    assert not np.isnan(expected[0]).any() and np.isnan(expected[2]).all()
    np.testing.assert_array_equal(read_boxes(texts, name, **options), expected)
    assert [len(boxes) > 0 for boxes in read_box_lists(texts, name, **options)][::2] == [
        True,
        False,
    ]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(alphabet="at <>0123456789x", max_size=30), size), min_size=1, max_size=4
    ),
    st.sampled_from(FRAMES),
)
@example([("at <10><20><30><40> at <x><20><30><40> <10><20><30><40>", (50, 90))], "pad")
def test_a_users_own_format_is_read_with_its_own_pattern(rows, frame):
    """It looks behind, which Polars' patterns cannot."""
    texts, sizes = zip(*rows, strict=True)
    options = {"frame": frame, "sizes": sizes, "resized": sizes}
    expected = each_box(texts, OWN, frame, sizes, sizes)
    np.testing.assert_array_equal(read_boxes(texts, OWN, **options), expected)
    for found, (text, one) in zip(read_box_lists(texts, OWN, **options), rows, strict=True):
        alone = parse_boxes(text, OWN, frame=frame, image_size=one, resized=one)
        assert [None if np.isnan(box[0]) else tuple(box) for box in found] == alone


def test_a_box_that_is_on_no_image_keeps_its_place_in_the_list():
    text = "[0.1, 0.2, 0.3, 0.4], [10, 20, 30, 40], [1, 1, 1, 1234567890] and [0.5, 0.5, 1.0, 1.0]"
    (found,) = read_box_lists([text], "llava", frame="full", sizes=[(10, 10)])
    expected = [(1, 2, 3, 4), (100, 200, 300, 400), NOWHERE, (5, 5, 10, 10)]
    np.testing.assert_allclose(found, expected)


# --- points --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("llava", "[0.1, 0.2]", (1, 4)),
        ("llava", "It is at ( 0.1 ,.2 ).", (1, 4)),
        ("llava", "[0.1, 0.2] or [0.3, 0.4]", (1, 4)),
        ("llava", "(0.1, 0.2), (0.3, 0.4)", (1, 4)),
        ("llava", "[see] (0.1, 0.2)", (1, 4)),
        ("llava", "[[0.1, 0.2]]", (1, 4)),
        ("qwen3-vl", '[{"point_2d": [100, 200], "label": "cat"}]', (1, 4)),
        ("qwen2.5-vl", '{"point_2d": [1, 4]}', (1, 4)),
        ("qwen2.5-vl", "{'point_2d': ['1', \"4\",]}", (1, 4)),
        ("qwen3-vl", '{"point_2d": (100\uff0c200)}', (1, 4)),
        ("llava", '["0.1", "0.2"]', None),
        ("llava", "[10, 20] (0.1, 0.2)", (100, 400)),
        ("llava", "[0.1, 1.02]", (1, 20.4)),
        ("llava", "[0.1, 9999999999] (0.1, 0.2)", None),
        ("llava", "[0.1, 0.2)", None),
        ("llava", "[0.1, 0.2, 0.3]", None),
        ("llava", "[0.1, 0.2, 0.3, 0.4]", None),
        ("llava", "0.1, 0.2", None),
        ("llava", "[1e-1, 0.2]", None),
        ("llava", "", None),
    ],
)
def test_a_point_is_two_numbers_in_brackets_of_one_kind(name, text, expected):
    """In an image of 10 x 20."""
    found = read_points([text], name, frame="full", sizes=[(10, 20)])
    np.testing.assert_allclose(found, [expected or (math.nan, math.nan)])


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("name", ["llava", "pixel", "internvl"])
@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.tuples(number, number, size, size), min_size=1, max_size=5))
def test_a_point_is_at_the_first_corner_of_a_box_with_the_same_numbers(name, frame, rows):
    xs, ys, sizes, resized = zip(*rows, strict=True)
    points = [f"[{x}, {y}]" for x, y in zip(xs, ys, strict=True)]
    corners = [f"[{x}, {y}, {x}, {y}]" for x, y in zip(xs, ys, strict=True)]
    expected = each_box(corners, name, frame, sizes, resized)[:, :2]
    found = read_points(points, name, frame=frame, sizes=sizes, resized=resized)
    plain = [re.fullmatch(r"\[(-?\d*\.?\d*), (-?\d*\.?\d*)\]", p, re.ASCII) for p in points]
    rows = [row for row, match in enumerate(plain) if match]
    np.testing.assert_array_equal(found[rows], expected[rows])


# --- polygons ------------------------------------------------------------------------------------

TRIANGLE = ((1, 2), (3, 4), (5, 6))


@pytest.mark.parametrize(
    "text",
    [
        "[1,2,3,4,5,6]",
        "The outline: [ 1, 2.0, 3,4 , 5,6. ].",
        "[[1, 2], [3, 4], [5, 6]]",
        "[1, 2], [3, 4], [5, 6]",
        "[[[1,2],[3,4],[5,6]]]",
        "<quad>(1,2),(3,4),(5,6)</quad>",
        "(1, 2) (3, 4)\n(5, 6)",
        "[(1, 2), (3, 4), (5, 6)]",
        "[1, 2, 3, 4] [1, 2, 3, 4, 5, 6]",
        "[1, 2, 3, 4, 5] (1,2),(3,4) [1, 2, 3, 4, 5, 6]",
        "[1,2,3,4,5,6] [[6,5],[4,3],[2,1]]",
        "[1, 2], [1, 2, 3, 4, 5, 6]",
    ],
)
def test_the_first_run_of_three_points_is_the_polygon(text: str):
    (found,) = read_polygons([text], "pixel", frame="full", sizes=[(10, 10)])
    assert found is not None
    assert found.tolist() == [list(point) for point in TRIANGLE]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1, 2, 3, 4]",
        "(1,2),(3,4)",
        "[[1, 2], [3, 4]]",
        "[1, 2, 3, 4, 5]",
        "[1, 2, 3, 4, 5, 6, 7]",
        "[1, 2, 3, 4, 5, 6, 7] [1, 2, 3, 4, 5, 6]",
        "[1, 2, 3, 4, 5, 9999999999]",
        "[1, 2, 3, 4, 5, 9999999999] [1, 2, 3, 4, 5, 6]",
        "[1, 2, 3, 4, 5, nan]",
        "[1 2 3 4 5 6]",
        "1, 2, 3, 4, 5, 6",
    ],
)
def test_text_without_a_run_of_points_on_an_image_has_no_polygon(text: str):
    assert read_polygons([text], "pixel", frame="full", sizes=[(10, 10)]) == [None]


def test_a_polygon_that_reaches_out_of_the_frame_is_read_as_it_stands():
    (found,) = read_polygons(["[-1, 2, 3, 4, 5, 11]"], "pixel", frame="full", sizes=[(10, 10)])
    assert found.tolist() == [[-1, 2], [3, 4], [5, 11]]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=12),
            st.sampled_from(["flat", "nested", "quad"]),
            st.sampled_from(["", "[1, 2, 3, 4] ", "in (3) words: "]),
        ),
        max_size=5,
    )
)
def test_a_polygon_that_was_written_is_read(rows):
    texts = []
    for points, way, before in rows:
        flat = ", ".join(f"{x}, {y}" for x, y in points)
        nested = ", ".join(f"[{x}, {y}]" for x, y in points)
        quad = ",".join(f"({x},{y})" for x, y in points)
        texts.append(before + {"flat": f"[{flat}]", "nested": f"[{nested}]", "quad": quad}[way])
    found = read_polygons(texts, "pixel", frame="full", sizes=[(9, 9)] * len(texts))
    assert [p.tolist() for p in found] == [[list(p) for p in points] for points, _, _ in rows]


def test_a_polygon_is_placed_in_the_frame_of_its_own_image():
    """[0, 0, .5, 1, ...]: the crop of 200 x 100 starts at x = 50, the pad of 100 x 200 at -50."""
    text = "[0, 0, 0.5, 1, 1, 0]"
    sizes = [(200, 100), (100, 200)]
    crop = read_polygons(["none", text], "llava", frame="crop", sizes=[(1, 1), sizes[0]])
    pad = read_polygons([text, "none", text], "llava", frame="pad", sizes=[sizes[1]] * 3)
    assert crop[0] is None and crop[1].tolist() == [[50, 0], [100, 100], [150, 0]]
    assert [p if p is None else p.tolist() for p in pad] == [
        [[-50, 0], [50, 200], [150, 0]],
        None,
        [[-50, 0], [50, 200], [150, 0]],
    ]


# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", 3),
        ("There are 3 cats and 4 dogs.", 3),
        ("-0.5", -0.5),
        ("\u22125 degrees", -5),
        ("-$5.20", -5.2),
        (".5", 0.5),
        ("5.", 5),
        ("007", 7),
        ("1,234", 1234),
        ("12,345,678.9", 12345678.9),
        ("1,5", 1),
        ("1,2345", 1),
        ("1234,567", 1234),
        ("1, 234", 1),
        ("50%", 50),
        ("**42**", 42),
        (r"\boxed{7}", 7),
        ("3-5", 3),
        ("- 5", 5),
        ("...5", 5),
        ("20km", 20),
        ("H2O has 3 atoms", 3),
        ("two", 2),
        ("Twenty.", 20),
        ("I count ZERO", 0),
        ("One can see 3 cats", 3),
        ("seven dwarfs, one apple", 7),
        ("\ud800 7", 7),
        ("\ud800two", 2),
    ],
)
def test_the_first_number_of_a_text_is_read(text: str, expected: float):
    assert read_numbers([text]).tolist() == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "no cats",
        "a cat",
        "H2O",
        "v1.5",
        "1e5",
        "2E-3",
        "9" * 400,
        "NaN",
        "inf",
        "twenty-one",
        "Twenty one",
        "forty-two",
        "two hundred",
        "three point five",
        "two-legged",
        "someone",
        "\u0663",
        "\u00b2",
        "1e5 or two",
    ],
)
def test_text_without_a_plain_number_is_unread(text: str):
    assert np.isnan(read_numbers([text])).all()


# --- any text ------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.lists(nasty | st.text(alphabet=st.characters(codec=None), max_size=20), max_size=6),
    st.sampled_from(list(BOX_FORMATS)),
    st.sampled_from(FRAMES),
)
def test_any_text_is_read_or_unparsed_and_nothing_else(texts, name, frame):
    options = {"frame": frame, "sizes": [(30, 20)] * len(texts), "resized": [(9, 9)] * len(texts)}
    boxes, points = read_boxes(texts, name, **options), read_points(texts, name, **options)
    lists = read_box_lists(texts, name, **options)
    has_polygons = not BOX_FORMATS[name].cells
    polygons = read_polygons(texts, name, **options) if has_polygons else [None] * len(texts)
    assert boxes.shape == (len(texts), 4) and points.shape == (len(texts), 2)
    assert len(lists) == len(polygons) == len(read_numbers(texts)) == len(texts)
    assert not np.isinf(read_numbers(texts)).any()
    for found in (*boxes, *points, *(box for listed in lists for box in listed)):
        assert np.isfinite(found).all() or np.isnan(found).all()
    for polygon in polygons:
        assert polygon is None or (len(polygon) >= 3 and np.isfinite(polygon).all())


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [read_boxes, read_box_lists, read_points, read_polygons])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"box_format": "lava"}, ConfigError, "there is no box format 'lava'"),
        ({"frame": "padded"}, ConfigError, "there is no frame 'padded'"),
        ({"frame": "resized"}, ConfigError, "needs the sizes"),
        ({"frame": "resized", "resized": [(9, 9), (9, 0)]}, ConfigError, "resized is (9.0, 0.0)"),
        ({"sizes": [(9, 9), (0, 9)]}, ConfigError, "sizes is (0.0, 9.0) in row 1"),
        ({"sizes": [(9, 9), (9, math.nan)]}, ConfigError, "sizes is (9.0, nan) in row 1"),
        ({"sizes": [(9, 9)]}, ValueError, "sizes must have the shape (2, 2), not (1, 2)"),
    ],
)
def test_a_wrong_setting_is_named(read, options, error, message):
    valid = {"box_format": "llava", "frame": "full", "sizes": [(9, 9), (9, 9)]}
    with pytest.raises(error, match=re.escape(message)):
        read(["[0, 0, 1, 1]", ""], **{**valid, **options})
