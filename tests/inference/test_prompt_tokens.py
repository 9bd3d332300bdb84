"""A prompt's tokens are compared with training's, and must fit in the model's context."""

import pytest
from tiny_models import noise_image, save_tiny_llava

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.inference.prompt_tokens import (
    answer_too_long,
    compare_prompt_tokens,
    prompt_too_long,
)
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_without_weights
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.prompts import encode_prompt

IMAGE_ID = 3


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    return load_without_weights(
        resolve_model(str(save_tiny_llava(tmp_path_factory.mktemp("llava"))))
    )


@pytest.fixture(scope="module")
def expected(vlm: Vlm) -> list[int]:
    """`<s>USER: `, 16 placeholders for an image of 4 x 4 patches, and the question."""
    return encode_prompt(vlm, noise_image(0), "where is square 7?").input_ids.tolist()


def message_of(vlm: Vlm, found: list[int], expected: list[int]) -> str:
    with pytest.raises(ConfigError) as caught:
        compare_prompt_tokens(
            vlm,
            found,
            expected,
            reader="vLLM",
            prompt="prompt p7",
            where="there",
            fix="do this",
        )
    assert (caught.value.where, caught.value.fix) == ("there", "do this")
    return caught.value.what


def test_equal_tokens_are_accepted(vlm: Vlm, expected: list[int]) -> None:
    compare_prompt_tokens(vlm, tuple(expected), expected, reader="it", prompt="p", fix="none")


def test_placeholders_are_shown_by_their_number(vlm: Vlm, expected: list[int]) -> None:
    fewer = list(expected)
    fewer.remove(IMAGE_ID)
    place = expected.index(IMAGE_ID) + 15
    first, theirs, ours = message_of(vlm, fewer, expected).splitlines()
    assert first == (
        f"vLLM and training read different tokens for prompt p7: {len(fewer)} tokens instead of "
        f"{len(expected)}; from position {place} on {expected[place + 1 : place + 5]} instead of "
        f"{expected[place : place + 4]}"
    )
    assert theirs.startswith("  vLLM: ") and "<image>*15" in theirs
    assert ours.startswith("  training: ") and "<image>*16" in ours


def test_the_shown_text_starts_shortly_before_the_first_difference(
    vlm: Vlm, expected: list[int]
) -> None:
    seven, eight = (vlm.tokenizer(digit, add_special_tokens=False)["input_ids"] for digit in "78")
    other = [eight[0] if token == seven[0] else token for token in expected * 9]
    _, theirs, ours = message_of(
        vlm, expected * 8 + other[: len(expected)], expected * 9
    ).splitlines()
    assert "where is square 8?" in theirs and "where is square 7?" in ours
    assert len(ours) < 150


@pytest.mark.parametrize("strange", [-1, 300, 10**30])
def test_ids_that_the_tokenizer_lacks_are_shown_as_ids(
    vlm: Vlm, expected: list[int], strange: int
) -> None:
    assert f"from position 0 on [{strange}, 1, " in message_of(vlm, [strange, *expected], expected)


@pytest.mark.parametrize(
    ("prompt", "context", "is_refused"),
    [(511, 512, False), (512, 512, True), (600, 512, True), (600, None, False)],
)
def test_a_prompt_must_leave_room_for_one_token(
    prompt: int, context: int | None, is_refused: bool
) -> None:
    failure = prompt_too_long(prompt, context)
    assert (failure is not None) is is_refused
    if failure is not None:
        assert f"{prompt} tokens" in failure.reason and "context of 512" in failure.reason


@pytest.mark.parametrize(
    ("answer", "context", "is_refused"), [(12, 512, False), (13, 512, True), (13, None, False)]
)
def test_prompt_and_answer_must_fit_together(
    answer: int, context: int | None, is_refused: bool
) -> None:
    failure = answer_too_long(500, answer, context)
    assert (failure is not None) is is_refused
    if failure is not None:
        assert failure.reason == (
            "the prompt has 500 tokens and an answer at least 13: more than the context of 512"
        )
