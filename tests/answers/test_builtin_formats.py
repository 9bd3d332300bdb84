"""The formats of the families, each with an answer that its own source quotes or computes."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpo_pipeline.answers.boxes import BOX_FORMATS, format_box, parse_box, parse_boxes
from perpo_pipeline.answers.denials import read_denials
from perpo_pipeline.answers.pipeline import answer_text
from perpo_pipeline.answers.placement import place_frame
from perpo_pipeline.answers.reading import read_points, read_polygons
from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.errors import ConfigError

SIZE = (640, 480)
KILO = {"frame": "full", "image_size": (1000, 1000)}


def read(text: str, name: str, size: tuple[int, int] = (1000, 1000)):
    """The box in what a user would score: thoughts and the answer's marks are off."""
    answer = answer_text(text, Reading(name))
    assert answer is not None
    return parse_box(answer, name, frame="full", image_size=size)


# --- answers as the sources quote them -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [
        # zai-org/GLM-V, issue 118: a maintainer's answer of GLM-4.5V, in the README's marks.
        (
            "glm-v",
            "<think>... bounding box [[1,2,3,4]].</think>\n<|begin_of_box|>[[110,147,193,823]]"
            "<|end_of_box|>",
            (110, 147, 193, 823),
        ),
        # "The bracket style may vary ([], [[]], (), <>, etc.)"; an answer of GLM-4.5V elsewhere.
        (
            "glm-v",
            "The bounding box for the 'wall_95' entry in the Outliner list is "
            "<|begin_of_box|>[816, 162, 838, 172]<|end_of_box|>.",
            (816, 162, 838, 172),
        ),
        ("glm-v", "<|begin_of_box|>(816,162,838,172)<|end_of_box|>", (816, 162, 838, 172)),
        ("glm-v", "<816,162,838,172>", (816, 162, 838, 172)),
        ("glm-v", "[816,162,838,172)", (816, 162, 838, 172)),  # a pair need not match: our rule
        # Hugging Face blog, Gemma 4: the button is wider than it is high.
        (
            "gemma",
            '```json\n[\n  {"box_2d": [171, 75, 245, 308], "label": "view recipe element"}\n]\n```',
            (75, 171, 308, 245),
        ),
        # ms-swift's test of paligemma-3b-mix-224, asked to "detect cat".
        (
            "paligemma",
            "<loc0000><loc0000><loc1022><loc1022> cat",
            (0, 0, 1022 / 1.023, 1022 / 1.023),
        ),
        # README of DeepSeek-VL2: the giraffe reaches the right edge.
        (
            "deepseek-vl2",
            "<|ref|>The giraffe at the back.<|/ref|><|det|>[[580, 270, 999, 900]]<|/det|>",
            (580 / 0.999, 270 / 0.999, 1000, 900 / 0.999),
        ),
        # transformers' integration test of DeepSeek-OCR 2.
        (
            "deepseek-ocr",
            "<|ref|>title<|/ref|><|det|>[[330, 198, 559, 230]]<|/det|>\n# R",
            (330 / 0.999, 198 / 0.999, 559 / 0.999, 230 / 0.999),
        ),
        # OpenSQZ/MiniCPM-V-CookBook, issue 39: the form; the numbers are ours.
        (
            "minicpm-v",
            "<ref>object_name</ref><box>120 340 560 780</box>",
            (120, 340, 560, 780),
        ),
        # transformers' processing_kosmos2.py, with the fractions that it computes.
        (
            "kosmos-2",
            "<grounding> An image of<phrase> a snowman</phrase><object><patch_index_0044>"
            "<patch_index_0863></object> warming himself by<phrase> a fire</phrase><object>"
            "<patch_index_0005><patch_index_0911></object>.",
            (390.625, 46.875, 984.375, 828.125),
        ),
    ],
)
def test_an_answer_that_a_source_quotes(name: str, answer: str, expected) -> None:
    """In an image of 1000 x 1000."""
    assert read(answer, name) == pytest.approx(expected)


def test_florence_s_bins_are_read_at_their_centres_as_in_its_model_card() -> None:
    """The card's boxes of the green car and the yellow building, 640 x 480: 53.5 * 0.64 = 34.24."""
    answer = "A green car<loc_53><loc_331><loc_909><loc_780>a yellow building<loc_2><loc_8>"
    answer += "<loc_998><loc_635>"
    found = parse_boxes(answer, "florence-2", frame="full", image_size=SIZE)
    card = [
        (34.23999786376953, 159.1199951171875, 582.0800170898438, 374.6399841308594),
        (1.5999999046325684, 4.079999923706055, 639.0399780273438, 305.03997802734375),
    ]
    assert [pytest.approx(box, abs=1e-4) for box in card] == found
    assert "".join(re.findall("<loc_[0-9]+>", answer[:60])) == format_box(
        card[0], "florence-2", frame="full", image_size=SIZE
    )


def test_the_second_object_of_kosmos_is_read_too() -> None:
    text = "<object><patch_index_0044><patch_index_0863></object><object><patch_index_0005>"
    text += "<patch_index_0911></object>"
    found = parse_boxes(text, "kosmos-2", frame="full", image_size=(1, 1))
    assert found[1] == (0.171875, 0.015625, 0.484375, 0.890625)


# --- the families' own code as oracle ------------------------------------------------------------

# Fractions of an edge: ten-thousandths, because the oracle counts a float's width of a box as none.
shares = st.lists(st.integers(0, 10_000), min_size=2, max_size=2, unique=True).map(sorted)


@settings(max_examples=200, deadline=None)
@given(shares, shares)
def test_cells_are_those_of_kosmos_s_own_code(xs: list[int], ys: list[int]) -> None:
    oracle = pytest.importorskip("transformers.models.kosmos2.processing_kosmos2")
    x1, x2, y1, y2 = (value / 10_000 for value in (*xs, *ys))
    written = format_box((x1, y1, x2, y2), "kosmos-2", frame="full", image_size=(1, 1))
    cells = [int(digits) for digits in re.findall("[0-9]{4}", written)]
    assert cells == list(oracle.coordinate_to_patch_index((x1, y1, x2, y2), 32))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 1023), min_size=2, max_size=2))
def test_all_cells_are_read_as_kosmos_s_own_code_reads_them(cells: list[int]) -> None:
    oracle = pytest.importorskip("transformers.models.kosmos2.processing_kosmos2")
    text = "<object><patch_index_{:04}><patch_index_{:04}></object>".format(*cells)
    found = parse_box(text, "kosmos-2", frame="full", image_size=(1, 1))
    assert found == pytest.approx(oracle.patch_index_to_coordinate(*cells, 32))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 640), min_size=4, max_size=4))
def test_bins_are_those_of_florence_s_own_code(box: list[float]) -> None:
    """The port rounds what it reads down to whole pixels; ours does not."""
    module = pytest.importorskip("transformers.models.florence2.processing_florence2")
    torch = pytest.importorskip("torch")
    processor = object.__new__(module.Florence2PostProcessor)
    processor.quantize_bins = (1000, 1000)
    xyxy = (min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3]))
    whole = torch.tensor([xyxy], dtype=torch.float64)
    bins = processor.quantize(whole, (640, 640))
    written = format_box(xyxy, "florence-2", frame="full", image_size=(640, 640))
    ours = [int(digits) for digits in re.findall("[0-9]+", written)]
    # Both round a float: at the edge of a bin they may fall on either side of it.
    at_edge = [abs(value / 0.64 - round(value / 0.64)) < 1e-9 for value in xyxy]
    for mine, theirs, is_at_edge in zip(ours, bins[0].tolist(), at_edge, strict=True):
        assert abs(mine - theirs) <= is_at_edge
    found = parse_box(written, "florence-2", frame="full", image_size=(640, 640))
    theirs = processor.dequantize(torch.tensor([ours]), (640, 640))[0].tolist()
    assert [int(value + 1e-9) for value in found] == theirs


# --- what is no box of a format ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("paligemma", "<loc0000><loc0000><loc1022> cat"),
        ("paligemma", "<loc0000><loc0000><loc1022><loc1024>"),
        ("paligemma", "<loc0><loc0><loc1022><loc1022>"),
        ("paligemma", "<loc_000><loc_000><loc_102><loc_102>"),
        ("paligemma", "[0, 0, 1022, 1022]"),
        ("florence-2", "<loc0053><loc0331><loc0909><loc0780>"),
        ("florence-2", "<loc_53><loc_331><loc_909><loc_1000>"),
        ("florence-2", "<loc_53><loc_331>car<loc_909><loc_780>"),
        ("kosmos-2", "<patch_index_0044>"),
        ("kosmos-2", "<patch_index_0044><patch_index_1024>"),
        ("gemma", '{"bbox_2d": [171, 75, 245, 308]}'),
        ("gemma", "[171, 75, 245, 308]"),
        ("gemma", '{"box_2d": [171, 75, 245]}'),
        ("qwen3-vl", '{"box_2d": [171, 75, 245, 308]}'),
        ("glm-v", "110,147,193,823"),
        ("glm-v", "{110,147,193,823}"),
        ("deepseek-vl2", "<|det|>580, 270, 999, 900<|/det|>"),
        ("minicpm-v", "<box>120 340 560</box>"),
        ("minicpm-v", "<box>120 340 560 780 900</box>"),
        ("minicpm-v", "<box>120, 340, 560, 780</box>"),
        ("minicpm-v", "1e-1 2 3 4"),
        ("minicpm-v", "12px 340 560 780"),
        ("minicpm-v", "120 340 560 780px"),
        ("minicpm-v", "0.1.2 3 4 5"),
        ("minicpm-v", "120 340 560 780-"),
        ("molmo", '<point x="63.5" y="44.5" alt="Mt Rainier">Mt Rainier</point>'),
        ("molmo", '<points x1="1.0" y1="2.0" x2="3.0">'),
        ("molmo", "(63.5, 44.5), (70.0, 50.0)"),
    ],
)
def test_text_of_another_shape_is_no_box(name: str, text: str) -> None:
    assert parse_box(text, name, **KILO) is None


@pytest.mark.parametrize(
    "text",
    [
        "<box>120 340 560 780</box>",
        "<ref>cat</ref><box> 120  340 560 780 </box>",
        " 120 340 560 780",
        "The box is 120 340 560 780.",
        "The box is: 120 340 560 780 in the image.",
        "120 340 560 780 </box><box>1 2 3 4</box>",
        "120.0 340. 560 780\n",
    ],
)
def test_minicpm_s_numbers_are_read_with_their_marks_or_without(text: str) -> None:
    """A tokenizer that calls `<box>` special leaves it out of a completion's text."""
    assert parse_box(text, "minicpm-v", **KILO) == (120, 340, 560, 780)


# --- points and polygons -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("molmo", '<point x="63.5" y="44.5" alt="Mt Rainier">Mt Rainier</point>', (635, 445)),
        ("molmo", '<points x1="10.0" y1="20.5" x2="30.0" y2="40.0" alt="a">a</points>', (100, 205)),
        ("molmo", "(63.5, 44.5)", None),
        ("molmo", '<point y="44.5" x="63.5">', None),
        ("gemma", '[{"point": [445, 635], "label": "peak"}]', (635, 445)),
        ("gemma", '[{"point_2d": [445, 635]}]', None),
        ("minicpm-v", "<point>635 445</point>", (635, 445)),
        ("minicpm-v", "[635, 445]", None),
        ("florence-2", "[635, 445]", (635.5, 445.5)),
        ("deepseek-vl2", "[999, 0]", (1000, 0)),
        ("paligemma", "[0, 1023]", (1000, 0)),
    ],
)
def test_a_point_in_the_format_s_own_form(name: str, text: str, expected) -> None:
    """In an image of 1000 x 1000."""
    (found,) = read_points([text], name, frame="full", sizes=[(1000, 1000)])
    np.testing.assert_allclose(found, expected or (np.nan, np.nan))


@pytest.mark.parametrize("name", BOX_FORMATS)
@settings(max_examples=40, deadline=None)
@given(point=st.tuples(st.floats(0, 1000), st.floats(0, 1000)))
def test_a_written_point_reads_as_itself_up_to_rounding(name: str, point) -> None:
    rule = BOX_FORMATS[name]
    written = rule.write_point(point, place_frame("full", (1000, 1000), (1000, 1000)))
    (found,) = read_points(
        [written], name, frame="full", sizes=[(1000, 1000)], resized=[(1000, 1000)]
    )
    half = 0.501 * 1000 * 10.0**-rule.decimals / (rule.scale or 1000)
    assert found == pytest.approx(point, abs=half)


def test_the_last_point_is_taken_where_the_run_says_so() -> None:
    text = '<point x="1.0" y="2.0">a</point> <point x="3.0" y="4.0">a</point>'
    options = {"frame": "full", "sizes": [(100, 100)]}
    assert read_points([text], "molmo", **options, which="last").tolist() == [[3, 4]]
    assert read_points([text], "molmo", **options).tolist() == [[1, 2]]


def test_a_polygon_of_bins_has_its_points_at_their_centres() -> None:
    (found,) = read_polygons(["[0,0,10,0,10,10]"], "florence-2", frame="full", sizes=[(1000, 1000)])
    assert found.tolist() == [[0.5, 0.5], [10.5, 0.5], [10.5, 10.5]]


@pytest.mark.parametrize(
    "text", ["[0,0,0,10,20,10]", "[[0,0],[0,10],[20,10]]", "(0,0)(0,10)(20,10)"]
)
def test_a_polygon_of_a_format_with_y_first_has_y_first(text: str) -> None:
    for name, scale in (("gemma", 1000), ("paligemma", 1023)):
        (found,) = read_polygons([text], name, frame="full", sizes=[(scale, scale)])
        assert found == pytest.approx(np.array([[0, 0], [10, 0], [10, 20]]))


def test_a_format_of_cells_refuses_polygons() -> None:
    with pytest.raises(ConfigError, match="'kosmos-2' writes the cells of a grid and has no"):
        read_polygons(["[0,0,10,0,10,10]"], "kosmos-2", frame="full", sizes=[(1000, 1000)])


# --- edges of the frame --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "whole", "thin"),
    [
        (
            "paligemma",
            "<loc0000><loc0000><loc1023><loc1023>",
            "<loc0512><loc0512><loc0512><loc0512>",
        ),
        ("florence-2", "<loc_0><loc_0><loc_999><loc_999>", "<loc_500><loc_500><loc_500><loc_500>"),
        (
            "kosmos-2",
            "<object><patch_index_0000><patch_index_1023></object>",
            "<object><patch_index_0528><patch_index_0528></object>",
        ),
        (
            "deepseek-vl2",
            "<|det|>[[0, 0, 999, 999]]<|/det|>",
            "<|det|>[[500, 500, 500, 500]]<|/det|>",
        ),
    ],
)
def test_the_whole_frame_and_a_single_point_are_written_within_the_tokens_there_are(
    name: str, whole: str, thin: str
) -> None:
    """528 = 16 * 32 + 16: the cell right below the centre. 0.5 * 999 is rounded to even, as is
    0.5 * 1023 = 511.5."""
    assert format_box((0, 0, 1000, 1000), name, **KILO) == whole
    assert format_box((500, 500, 500, 500), name, **KILO) == thin
    edge = format_box((1000, 1000, 1000, 1000), name, **KILO)
    assert parse_box(edge, name, **KILO) is not None


@pytest.mark.parametrize("name", ["glm-v", "deepseek-vl2"])
def test_a_denial_is_read_in_its_marks_and_without_them(name: str) -> None:
    """As text, and as the run reads it: GLM's marks come off, special tokens are left out."""
    own = BOX_FORMATS[name].no_target
    answer = answer_text(own, Reading(name))
    assert read_denials([own, answer, "[]"], name).tolist() == [True, True, True]
