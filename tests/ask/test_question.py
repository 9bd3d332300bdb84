"""A question becomes a row as perpo prepare writes it; truths are read by their form."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from perpo_pipeline.ask.question import make_question, task_of_truth
from perpo_pipeline.errors import ConfigError, PerpoError
from perpo_pipeline.store.prompt_images import images_of, sizes_of

INSTRUCTION = (
    "Please provide the bounding box coordinate of the region this sentence describes: red cup"
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.mark.parametrize(
    ("text", "given", "asked"),
    [
        ("red cup", {}, INSTRUCTION),
        ("red cup", {"verbatim": True}, "red cup"),
        (INSTRUCTION, {}, INSTRUCTION),
        ("red cup", {"truth": "[1, 2]"}, "red cup"),
        ("red cup", {"task": "vqa"}, "red cup"),
        (
            "red cup",
            {"box_format": "internvl"},
            INSTRUCTION.replace("red cup", "<ref>red cup</ref>"),
        ),
    ],
)
def test_only_an_expression_gets_the_instruction(
    image: Path, text: str, given: dict[str, Any], asked: str
) -> None:
    question = make_question(image, text, **{"task": "grounding", **given})
    assert question.row["prompt"] == asked
    assert question.is_wrapped == (asked != text)


@pytest.mark.parametrize(
    ("truth", "column", "value"),
    [
        ("[1, 2, 30, 40]", "gt_box", [1, 2, 30, 40]),
        ("[[1, 2, 30, 40]]", "gt_boxes", [[1, 2, 30, 40]]),
        ("[]", "gt_boxes", []),
        ("[5, 6]", "gt_point", [5, 6]),
        ("[0, 0, 9, 0, 9, 9]", "gt_polygon", [0, 0, 9, 0, 9, 9]),
    ],
)
def test_a_list_is_a_truth_of_grounding(image: Path, truth: str, column: str, value: Any) -> None:
    assert task_of_truth(truth) == "grounding"
    question = make_question(image, "cup", task="grounding", truth=truth)
    assert question.truths == [column] and question.row[column] == value


@pytest.mark.parametrize("truth", ["a cup", "42", "", '{"a": 1}', "[" * 9000])
def test_everything_else_is_a_text(image: Path, truth: str) -> None:
    assert task_of_truth(truth) == "vqa"
    assert make_question(image, "What?", task="ocr", truth=truth).row["gt_text"] == truth


def test_a_list_is_a_text_too_where_the_task_says_so(image: Path) -> None:
    assert make_question(image, "What?", task="ocr", truth="[1, 2]").row["gt_text"] == "[1, 2]"


@pytest.mark.parametrize(
    ("truth", "fault"),
    [
        ("[1, 2, 65, 4]", "outside the image of 64x48"),
        ("[9, 2, 3, 4]", "inverted"),
        ("[1, 2, 3]", "three or more points"),
        ("[1, 2, 3, null]", "not four finite numbers"),
        ("a cup", "no list of numbers"),
    ],
)
def test_a_truth_that_cannot_be_one_is_an_error(image: Path, truth: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        make_question(image, "cup", task="grounding", truth=truth)


def test_a_missing_image_and_an_empty_question_are_errors(image: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        make_question(image.with_name("b.png"), "cup", task="vqa")
    with pytest.raises(ConfigError, match="the question is empty"):
        make_question(image, " ", task="grounding")
    with pytest.raises(ConfigError, match="QUESTION holds bytes that are no text"):
        make_question(image, "caf\udce9", task="grounding")
    with pytest.raises(ConfigError, match="--truth holds bytes that are no text"):
        make_question(image, "What?", task="ocr", truth="caf\udce9")


def test_the_row_of_several_images_has_them_in_order_and_boxes_on_the_last(image: Path) -> None:
    paths = [image]
    for name in ("b.png", "c.png"):
        paths.append(image.with_name(name))
        Image.new("RGB", (30 + len(paths), 20), "red").save(paths[-1])
    asked = make_question(
        image, "cup", task="grounding", truth="[1, 2, 9, 9]", more_images=paths[1:]
    )
    assert [one["path"] for one in images_of(asked.row)] == [str(path) for path in paths]
    assert sizes_of(asked.row) == [(64, 48), (32, 20), (33, 20)]
    assert asked.row["box_image"] == 2 and asked.row["width"] == 33
    assert asked.image_of_boxes == "image 3 of 3 (33 x 20)"
    with pytest.raises(ConfigError, match="outside the image of 33x20"):
        make_question(image, "cup", task="grounding", truth="[1, 2, 60, 9]", more_images=paths[1:])
    first = make_question(
        image, "cup", task="grounding", truth="[1, 2, 60, 9]", more_images=paths[1:], box_image=0
    )
    assert [one["path"] for one in images_of(first.row)] == [str(path) for path in paths]
    assert first.row["box_image"] == 0 and first.row["width"] == 64
    alone = make_question(image, "cup", task="grounding")
    assert alone.row["more_images"] is alone.row["box_image"] is None


@pytest.mark.parametrize(
    ("text", "given", "fault"),
    [
        ("<image> or <image>", {}, "holds <image> more than once"),
        ("<image>?", {"more": 1}, "it is there once, and the prompt has 2 images"),
        ("cup", {"box_image": 1}, "--box-image 1: .* the question has 1"),
        ("cup", {"more": 1, "box_image": -1}, "--box-image -1"),
    ],
)
def test_places_and_images_that_do_not_fit_are_errors(
    image: Path, text: str, given: dict[str, int], fault: str
) -> None:
    more = [image] * given.pop("more", 0)
    with pytest.raises(PerpoError, match=fault):
        make_question(image, text, task="vqa", more_images=more, **given)


def test_the_row_is_that_of_the_upright_image(tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 48))
    exif = picture.getexif()
    exif[274] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    row = make_question(tmp_path / "turned.jpg", "What?", task="vqa").row
    assert (row["width"], row["height"], row["image_notes"]) == (48, 64, ["exif-orientation"])
