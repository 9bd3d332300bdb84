"""`<image>` in a prompt is the place of the image, in every family."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_families import MODEL_TYPES, save_tiny_family
from tiny_models import noise_image

from perpo_pipeline.errors import InputError
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.image_place import turns_of
from perpo_pipeline.vlm.loading import load_without_weights
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.prompts import count_prompt_tokens, encode_prompt, moves_image


@pytest.fixture(scope="module", params=MODEL_TYPES)
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    directory: Path = save_tiny_family(request.param, tmp_path_factory.mktemp(request.param))
    return load_without_weights(resolve_model(str(directory)))


@pytest.mark.parametrize("first", ["<image>\n", "<image> ", "<image>", " \n<image>\n\n"])
def test_in_the_first_place_it_changes_nothing(vlm: Vlm, first: str) -> None:
    given, usual = (
        encode_prompt(vlm, noise_image(0), prompt)
        for prompt in (f"{first}Where is the red square?", "Where is the red square?")
    )
    assert given.input_ids.equal(usual.input_ids)


@pytest.mark.parametrize("prompt", ["One <image> two", "One </s>\n<image>\ntwo", "One<image>"])
def test_further_on_the_image_stands_between_the_texts(vlm: Vlm, prompt: str) -> None:
    encoded = encode_prompt(vlm, noise_image(0), prompt)
    ids = encoded.input_ids.tolist()
    image = vlm.model.config.image_token_id
    first, last = ids.index(image), len(ids) - ids[::-1].index(image)
    before, after = prompt.split("<image>")
    assert before in vlm.tokenizer.decode(ids[:first])
    assert after in vlm.tokenizer.decode(ids[last:])
    assert "One" not in vlm.tokenizer.decode(ids[last:])
    assert encoded.num_tokens == count_prompt_tokens(vlm, encoded.text, encoded.padded_size)
    usual = encode_prompt(vlm, noise_image(0), "One two").input_ids.tolist()
    assert ids.count(image) == usual.count(image)


def test_a_template_that_puts_images_first_is_found(vlm: Vlm) -> None:
    """LLaVA's templates on the hub write all images before all texts."""
    assert moves_image(vlm) == (vlm.family.name == "llava-onevision")
    processor = copy.copy(vlm.processor)
    processor.chat_template = (
        "{% for part in messages[0]['content'] if part['type'] == 'image' %}"
        "{{ 'IMAGE' }}{% endfor %}"
        "{% for part in messages[0]['content'] if part['type'] == 'text' %}"
        "{{ '\n' + part['text'] }}{% endfor %}"
    )
    assert moves_image(replace(vlm, processor=processor))


def test_two_places_are_one_too_many() -> None:
    with pytest.raises(InputError, match="holds <image> more than once"):
        turns_of("Is <image> left of <image>?")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Where?", ("", "Where?")),
        ("<image>\nWhere?", ("", "Where?")),
        ("Where?\n<image>", ("Where?\n", "")),
        ("Where?\n<image>\n", ("Where?\n", "")),
        ("Is <image> red?", ("Is ", " red?")),
        ("<image>", ("", "")),
        ("  Where? ", ("", "  Where? ")),
        ("<IMAGE> <images>", ("", "<IMAGE> <images>")),
    ],
)
def test_the_texts_before_and_after_it(prompt: str, expected: tuple[str, str]) -> None:
    assert [turn.texts for turn in turns_of(prompt)] == [expected]
