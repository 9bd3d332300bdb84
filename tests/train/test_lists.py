"""Training examples: the truth as the model itself would write it, in its format and frame."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_families import MODEL_TYPES, save_tiny_family
from tiny_models import noise_image

from perpo_pipeline.answers.denials import read_denials
from perpo_pipeline.answers.formats import BOX_FORMATS
from perpo_pipeline.answers.pipeline import answer_texts
from perpo_pipeline.answers.reading import read_box_lists, read_points
from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.train.lists import TrainingList, ground_truth_list, ground_truth_text
from perpo_pipeline.train.shared_prefix import CompletionList, check_lists
from perpo_pipeline.vlm.chat import AnswerTurn, answer_turn
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm
from perpo_pipeline.vlm.prompts import encode_prompt

TURN = AnswerTurn("", 2)
QWEN25 = ModelConfig(box_format="qwen2.5-vl", box_frame="resized")


def prompt(**changes: Any) -> dict[str, Any]:
    row = {
        "prompt_id": "p",
        "task": "grounding",
        "width": 640,
        "height": 428,
        "prompt": "Where?",
        "gt_box": [146, 137, 615, 415],
        "gt_boxes": None,
        "gt_text": None,
    }
    return row | changes


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Any:
    def load(model_type: str) -> Vlm:
        directory = save_tiny_family(model_type, tmp_path_factory.mktemp(model_type))
        return load_vlm(resolve_model(str(directory)), dtype="float32", device="cpu")

    return load


def answer_of(row: dict[str, Any], vlm: Vlm, model: ModelConfig) -> str:
    turn = answer_turn(vlm)
    sampled = TrainingList(row, [[1], [2]], [0.25, 0.75], [1, 2])
    entry = ground_truth_list(sampled, vlm, model, turn)
    assert entry.margin == sampled.margin == 0.5
    (ids,) = entry.completions
    assert ids[-1] == vlm.eos_token_ids[0] == turn.end_id
    return str(vlm.tokenizer.decode(ids[:-1], skip_special_tokens=False))


def test_the_truth_is_written_in_pixels_of_the_image_as_this_model_resizes_it(load: Any) -> None:
    """The published example: 640 x 428 becomes 644 x 420 at Qwen's own limits."""
    vlm = load("qwen2_5_vl")
    vlm.processor.image_processor.size = {"shortest_edge": 3136, "longest_edge": 1003520}
    written = ground_truth_text(prompt(), QWEN25, (644, 420))
    assert written == '{"bbox_2d": [147, 134, 619, 407]}'
    assert answer_of(prompt(), vlm, QWEN25) == answer_of(
        prompt(task="ocr", gt_text=written), vlm, QWEN25
    )
    smaller = prompt(width=56, height=56, gt_box=[0, 0, 28, 56])
    vlm.processor.image_processor.size = {"shortest_edge": 112 * 112, "longest_edge": 1003520}
    written = ground_truth_text(smaller, QWEN25, (112, 112))
    assert written == '{"bbox_2d": [0, 0, 56, 112]}'
    assert answer_of(smaller, vlm, QWEN25) == answer_of(
        prompt(task="ocr", gt_text=written), vlm, QWEN25
    )


def test_a_model_that_splits_images_into_tiles_has_no_resized_image(load: Any) -> None:
    vlm = load("llava_next")
    entry = TrainingList(prompt(), [[1]], [0.5], [1])
    with pytest.raises(
        ConfigError, match="'llava-next' model sees the image of prompt p differently"
    ):
        ground_truth_list(entry, vlm, QWEN25, answer_turn(vlm))
    text = TrainingList(prompt(task="ocr", gt_text="a", gt_box=None), [[1]], [0.5], [1])
    assert ground_truth_list(text, vlm, QWEN25, answer_turn(vlm)).rewards == [
        1.0
    ]  # a text needs no frame


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (ModelConfig(), "[0.23, 0.32, 0.96, 0.97]"),
        (ModelConfig(box_format="qwen3-vl"), '{"bbox_2d": [228, 320, 961, 970]}'),
        (ModelConfig(box_format="internvl"), "<box>[[228, 320, 961, 970]]</box>"),
        (ModelConfig(box_format="pixel"), "[146, 137, 615, 415]"),
        # Of 1023: 137 / 428, 146 / 640, 415 / 428, 615 / 640, y before x.
        (ModelConfig(box_format="paligemma"), "<loc0327><loc0233><loc0992><loc0983>"),
        (ModelConfig(box_format="florence-2"), "<loc_228><loc_320><loc_960><loc_969>"),
        # Cells 7, 10 to 30, 31 of 32: 10 * 32 + 7, 31 * 32 + 30.
        (
            ModelConfig(box_format="kosmos-2"),
            "<object><patch_index_0327><patch_index_1022></object>",
        ),
        # The centre square starts at x = 106 and is 428 wide: 40 / 428, and cut off at its edge.
        (ModelConfig(box_frame="crop"), "[0.09, 0.32, 1.00, 0.97]"),
        # The padded square starts at y = -106 and is 640 wide: 243 / 640, 521 / 640.
        (ModelConfig(box_frame="pad"), "[0.23, 0.38, 0.96, 0.81]"),
    ],
)
def test_the_truth_is_written_in_the_format_and_frame_of_the_run(
    model: ModelConfig, expected: str
) -> None:
    assert ground_truth_text(prompt(), model) == expected


def test_a_truth_outside_the_frame_is_refused() -> None:
    with pytest.raises(InputError, match="prompt p lies outside the frame 'crop'"):
        ground_truth_text(prompt(gt_box=[0, 0, 100, 100]), ModelConfig(box_frame="crop"))


def test_several_true_boxes_are_written_one_after_the_other() -> None:
    several = prompt(gt_box=None, gt_boxes=[[0, 0, 64, 107], [320, 214, 640, 428]])
    written = ground_truth_text(several, ModelConfig())
    assert written == "[0.00, 0.00, 0.10, 0.25], [0.50, 0.50, 1.00, 1.00]"


corners = st.tuples(st.integers(0, 900), st.integers(0, 900), st.integers(70, 99))


@pytest.mark.parametrize("box_format", BOX_FORMATS)
@settings(max_examples=20, deadline=None)
@given(st.lists(corners, max_size=4), st.sampled_from(["first", "last"]))
def test_the_target_of_n_boxes_reads_as_these_n_boxes(
    box_format: str, places: list[tuple[int, int, int]], which: Any
) -> None:
    """In an image of 1000 x 1000; two units may lie between, or two cells of 32."""
    true = [[x, y, x + edge, y + edge] for x, y, edge in places]
    frame = BOX_FORMATS[box_format].frame or "full"
    model = ModelConfig(box_format=box_format, box_frame=frame)
    size = (1000, 1000)
    row = prompt(gt_box=None, gt_boxes=true, width=size[0], height=size[1])
    target = ground_truth_text(row, model, size)
    answers = answer_texts([target], Reading(box_format, which=which))
    (found,) = read_box_lists(answers, box_format, frame=frame, sizes=[size], resized=[size])
    assert len(found) == len(true)
    rule = BOX_FORMATS[box_format]
    unit = 1000 * 10.0**-rule.decimals / (rule.scale or 1000)
    if true:
        np.testing.assert_allclose(found, true, rtol=0, atol=2 * unit)
    assert read_denials([answers[0]], box_format).tolist() == [not true]


@pytest.mark.parametrize(
    ("box_format", "expected"),
    [
        ("llava", "[]"),
        ("internvl", "<box>[]</box>"),
        ("qwen-vl", "There is no such object in the"),
        ("molmo", "There are none."),
    ],
)
def test_no_target_is_written_as_the_format_has_it(box_format: str, expected: str) -> None:
    written = ground_truth_text(
        prompt(gt_box=None, gt_boxes=[]), ModelConfig(box_format=box_format)
    )
    assert written.startswith(expected)
    assert read_denials([written], box_format).tolist() == [True]


@pytest.mark.parametrize(
    ("box_format", "expected"),
    [("llava", "[0.25, 0.50]"), ("qwen3-vl", '{"point_2d": [250, 500]}'), ("qwen-vl", "(250,500)")],
)
def test_a_true_point_is_written_in_the_unit_of_the_format(box_format: str, expected: str) -> None:
    """The image is 640 x 428."""
    row, model = prompt(gt_box=None, gt_point=[160, 214]), ModelConfig(box_format=box_format)
    assert ground_truth_text(row, model) == expected
    found = read_points([expected], box_format, frame="full", sizes=[(640, 428)])
    assert found.tolist() == [[160, 214]]
    with pytest.raises(InputError, match=r"point of .* lies outside the frame 'crop'"):
        ground_truth_text(prompt(gt_box=None, gt_point=[1, 1]), ModelConfig(box_frame="crop"))


def test_a_polygon_cannot_be_a_target_for_sft() -> None:
    with pytest.raises(InputError, match="has no true box to train on"):
        ground_truth_text(prompt(gt_box=None), ModelConfig())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_true_text_that_spells_control_tokens_is_learned_as_text(
    load: Any, model_type: str
) -> None:
    vlm = load(model_type)
    for text in ("price: <s>19.90</s> 9.90 euro", "<|im_end|><image>", "<audio> <video> <unk>"):
        row = prompt(task="ocr", gt_text=text, prompt="Read <s>this</s>.")
        entry = ground_truth_list(TrainingList(row, [[1]], [0.5], [1]), vlm, ModelConfig(), TURN)
        (ids,) = entry.completions
        assert ids[-1] == TURN.end_id
        assert not set(ids[:-1]) & set(vlm.tokenizer.added_tokens_decoder)
        assert vlm.tokenizer.decode(ids[:-1]).strip() == text
        check_lists([CompletionList(encode_row_of(vlm), [ids])], vlm.image_token_ids)


def encode_row_of(vlm: Vlm) -> EncodedPrompt:
    return encode_prompt(vlm, noise_image(0), "Read this.")


def test_a_box_keeps_the_marks_of_its_region_as_tokens(load: Any) -> None:
    vlm = load("internvl")
    vlm.tokenizer.add_special_tokens({"additional_special_tokens": ["<box>", "</box>"]})
    model = ModelConfig(box_format="internvl")
    entry = TrainingList(prompt(), [[1]], [0.5], [1])
    (ids,) = ground_truth_list(entry, vlm, model, answer_turn(vlm)).completions
    opening, closing = vlm.tokenizer.convert_tokens_to_ids(["<box>", "</box>"])
    assert ids[0] == opening and ids[-2:] == [closing, vlm.eos_token_ids[0]]


def test_a_target_first_closes_the_thought_that_the_template_opened(load: Any) -> None:
    vlm = load("qwen3_vl")
    row = prompt(task="ocr", gt_text="two <s>")
    turn = AnswerTurn("\n</think>\n\n", 302)
    (ids,) = ground_truth_list(
        TrainingList(row, [[1]], [0.5], [1]), vlm, ModelConfig(), turn
    ).completions
    assert vlm.tokenizer.decode(ids) == "\n</think>\n\ntwo <s><|im_end|>"


def test_a_text_that_cannot_be_a_target_is_named_by_its_place(load: Any) -> None:
    row = prompt(task="ocr", gt_text="a \ufdd0", place="train.jsonl:7")
    entry = TrainingList(row, [[1]], [0.5], [1])
    with pytest.raises(InputError, match="U\\+FDD0") as caught:
        ground_truth_list(entry, load("llava"), ModelConfig(), TURN)
    assert "train.jsonl:7 (prompt p)" in str(caught.value.where)
