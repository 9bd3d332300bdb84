"""Which answers say that what was asked for is not there, and which only look like it."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpo_pipeline.answers.denials import DENIALS, LONGEST, read_denials
from perpo_pipeline.answers.formats import BOX_FORMATS
from perpo_pipeline.answers.reading import read_box_lists
from perpo_pipeline.errors import ConfigError

DENYING = [
    "[]",
    " [ ]\n",
    "```json\n[]\n```",
    "None",
    "no target.",
    "Not found",
    "There is no dog in the image.",
    "There are no red cars.",
    "there is no such object in the picture",
    "There's no one with an umbrella.",
    "There isn't a dog in this photo.",
    "There is not any dog.",
    "No dog is visible in the image.",
    "No people with hats can be seen here.",
    "The image does not contain a man in a green shirt.",
    "This picture doesn't show any zebras.",
    "The image contains no dog.",
    "The man in red is not in the image.",
    "The described object isn't present.",
    "A purple elephant does not exist in this image.",
    "The dog cannot be found.",
    "I cannot find a dog in the image.",
    "I don't see any dog in the picture.",
    "No, there is no dog in the image.",
    "No. There is no dog in the image.",
    "Sorry. The dog is not visible. It shows a cat.",
    "Sorry, but there is no dog in the image.",
    "Unfortunately, the image does not show a dog.",
    "There is no dog in the image. It shows a cat on a sofa.",
    "There is no dog, but there is a cat.",
    "There is no bus with the number 25.",
    "There are no 2 dogs in the image.",
    "No dog is on the sofa.",
    "The dog is not within the frame.",
    "The page number is not visible.",
    "The picture on the wall is not visible in the photo.",
    "The dog is not in the provided image.",
    "The dog is not in the given photo.",
    "The dog is not in the displayed image.",
    "The dog is not in the second image.",
    "The dog is not in either image.",
    "The dog is not in any of the images.",
    "The dog is not in any image.",
    "The dog is not in the images.",
    "The dog is not in the pictures.",
    "The dog is not in these two photos.",
    "The dog is not in your image.",
    "The dog is not in our image.",
    "The dog is not in an image like this.",
    "The dog is not in the black and white image.",
    "The dog is not in the image provided.",
    "The dog is not in the video frame.",
    "The dog is not in view.",
    "The dog isn't in frame",
    "The dog is not on screen.",
    "The dog is not on the screen.",
    "The dog is not within view.",
    "The dog is not in the camera's field of view.",
    "The dog is not within the field of view.",
    "The dog is not in this particular photo.",
    "The dog is not within the visible area of the image.",
    "The dog is not within the image boundaries.",
    "The dog is not in the image's frame.",
    "The dog is not within the frame of the photo.",
    "The object is not in the camera's view.",
    "The dog is not in the image, but there is a cat.",
    "I cannot find the dog in the provided image.",
    "I cannot find a picture of a dog in the image.",
    "The screen of the laptop is not visible in the image.",
    "The screen is not visible in the image.",
    "The second screen can't be seen in the image.",
    "No screen is visible in the image.",
    "No picture frame is visible in the image.",
    "The frame of the bicycle is not visible in the image.",
    "The picture of a dog is not visible in the image.",
    "The image of a dog is not present.",
    "The photo of the cat is not in the image.",
    "The woman's picture is not visible in the image.",
    "There's no screen in the image.",
    "There is no screen in the image.",
    "There isn't a photo frame in the image.",
    "There is not any frame in the image.",
    "There isn't a picture on the wall.",
]
OTHERS = [
    "The dog is on the left and is not shown fully.",
    "There is a dog that is not in the picture's centre.",
    "",
    " ",
    "No.",
    "no",
    "I don't know.",
    "There is no",
    "There is no doubt that the dog is on the left.",
    "There is nothing but a dog in the image.",
    "There is no dog except the one on the left.",
    "There is a dog in the image.",
    "The dog is in the image.",
    "The image does not load.",
    "I cannot see the image.",
    "I cannot see any image in the picture",
    "I'm sorry, but I can't help with that.",
    "I cannot identify people in the image.",
    "There is no image.",
    "There's no image.",
    "There isn't an attached image.",
    "The image is not visible.",
    "The image isn't visible",
    "I'm sorry, the image is not visible",
    "Sorry, but the contents of the image cannot be seen.",
    "The image cannot be seen.",
    "The image you sent does not exist.",
    "The image in your message is not visible.",
    "The image file was not found.",
    "No image is present.",
    "None of the pictures can be seen.",
    "The picture is not shown here.",
    "The bus is not on the road. It is parked at the left.",
    "The dog on the sofa is not on the floor",
    "The man is not in red.",
    "The woman is not on the left, but the man is.",
    "The object is not in the left half of the image.",
    "The object is not in the image's left half.",
    "There is no dog. [0.1, 0.2, 0.3, 0.4]",
    "There is no dog (10, 20), (30, 40)",
    "There is no dog. 12, 30, 40, 50",
    "There is no dog in the image. The dog is at x=3, y=4.",
    "The dog is not there but 100 200 300 400",
    "The dog is not in the middle but in the corner.",
    "There is no other dog than the one on the left.",
    "There is no one else but the dog.",
    "There is nothing wrong with the dog at the top.",
    "[[]",
    "[] []",
    "[1]",
    "{}",
    "null",
    "The dog. There is no cat.",
    "There is no dog. " * 3,
    "There is no dog and " * 20,
    "asdf qwer [[[",
    "The cat is not in the picture frame.",
    "The dog is not in a frame.",
    "The cup is not on the laptop screen.",
    "The dog is not on the screen of the laptop.",
    "The sticker is not on the frame of the bicycle.",
    "The dog is not in the left image.",
    "The dog is not in the first image, but it is in the second.",
    "The dog is not in the second image, only in the first.",
    "The dog is not in the second image but in the first.",
    "The dog is not in all of the images.",
    "The object is not in the lower part of the image.",
    "The man is not in a red shirt in the image.",
    "I cannot see the screen.",
    "There's no image in the photo.",
    "There is no photo on the page.",
    "There is no picture in your message.",
    "There isn't an image supplied.",
    "There is no image of the dog attached.",
    "There isn't a picture of it in your message.",
    "There isn't an attached photo in the image.",
    "The second image is not visible.",
    "The image is not in view.",
    "The image is not visible in the image.",
    "The image is not visible on the screen.",
    "Your photo is not shown on this page.",
    "The photo you sent is not visible in the image.",
    "The picture is not visible, so I cannot say if a dog is in the image.",
    "I cannot see the photo, so I can't say whether the dog is in the image.",
]


@pytest.mark.parametrize(
    ("text", "denies"), [*((text, True) for text in DENYING), *((text, False) for text in OTHERS)]
)
def test_which_answers_deny(text: str, denies: bool) -> None:
    assert read_denials([text, text.upper()], "llava").tolist() == [denies] * 2


def test_the_longest_answer_that_is_read() -> None:
    text = "There is no dog" + " at all" * LONGEST
    assert read_denials([text[:LONGEST], text[: LONGEST + 1]], "llava").tolist() == [True, False]


def test_no_answer_does_not_deny() -> None:
    assert read_denials([None, "[]"], "llava").tolist() == [False, True]
    assert read_denials([], "llava").shape == (0,)


@pytest.mark.parametrize("name", BOX_FORMATS)
def test_what_a_format_writes_for_no_target_denies_and_holds_no_box(name: str) -> None:
    text = BOX_FORMATS[name].no_target
    assert read_denials([text], name).tolist() == [True]
    frame = BOX_FORMATS[name].frame or "full"
    (found,) = read_box_lists([text], name, frame=frame, sizes=[(9, 9)], resized=[(9, 9)])
    assert len(found) == 0


def test_a_format_s_own_text_denies_only_in_that_format() -> None:
    assert read_denials(["<box>[]</box>"], "internvl").tolist() == [True]
    assert read_denials(["<box>[]</box>"], "llava").tolist() == [False]
    with pytest.raises(ConfigError, match="no box format 'lava'"):
        read_denials([], "lava")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.sampled_from([*DENYING, *DENIALS]))
def test_any_text_is_read_without_an_error(text: str, denial: str) -> None:
    texts = [text, denial + text, text + denial, f"```{text}```"]
    assert read_denials(texts, "qwen3-vl").shape == (4,)


@pytest.mark.parametrize(
    "piece",
    [
        "there is no ",
        "is not ",
        "[",
        "no a",
        "can't be ",
        ". ",
        "`",
        "is not in the second ",
        "no page ",
    ],
)
def test_a_long_text_takes_no_time(piece: str) -> None:
    start = time.perf_counter()
    short = (piece * LONGEST)[:LONGEST]
    read_denials([piece * 100_000, *[short] * 20, *["there is no " + short[:200]] * 20], "llava")
    assert time.perf_counter() - start < 5
