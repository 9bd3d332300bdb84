"""Several images and earlier turns in every family, by its own template and processor."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tiny_families import MODEL_TYPES, save_tiny_family
from tiny_models import noise_image

from perpo_pipeline.errors import InputError
from perpo_pipeline.store.schemas import PROMPTS
from perpo_pipeline.vlm.chat_settings import ChatSettings
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.image_place import Turn, turns_of
from perpo_pipeline.vlm.loading import load_without_weights
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.prompts import (
    count_prompt_tokens,
    encode_prompt,
    render_prompt,
    resized_size,
)
from perpo_pipeline.vlm.several_images import refuse_several_images

SIZES = [(48, 40), (90, 30), (40, 64)]
HISTORY = [
    ("system", "one two"),
    ("user", "red <image> or blue <image>"),
    ("assistant", "the square"),
]


@pytest.fixture(scope="module", params=MODEL_TYPES)
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    directory: Path = save_tiny_family(request.param, tmp_path_factory.mktemp(request.param))
    return load_without_weights(resolve_model(str(directory)))


def images() -> list[Any]:
    return [noise_image(seed, *size) for seed, size in enumerate(SIZES)]


def test_images_turns_and_texts_are_in_their_order(vlm: Vlm) -> None:
    encoded = encode_prompt(vlm, images(), turns_of("where is <image>?", HISTORY, 3))
    ids, image = encoded.input_ids.tolist(), vlm.model.config.image_token_id
    said = [vlm.tokenizer.decode(ids[:end]) for end in range(len(ids) + 1)]
    texts = ("one two", "red", "or blue", "the square", "where is")
    ends = [next(end for end, text in enumerate(said) if one in text) for one in texts]
    assert ends == sorted(ends)
    places = [place for place, token in enumerate(ids) if token == image]
    _, red, blue, square, where = ends
    assert min(places) >= red
    for start, end in ((red, blue), (blue, square), (where, len(ids))):
        assert any(start <= place < end for place in places)
    assert not any(square <= place < where for place in places)


@pytest.mark.parametrize("box_image", [0, 1, 2])
def test_tokens_and_sizes_are_known_without_pixels(vlm: Vlm, box_image: int) -> None:
    turns = turns_of("where is <image>?", HISTORY, 3)
    encoded = encode_prompt(vlm, images(), turns, box_image=box_image)
    assert encoded.num_tokens == count_prompt_tokens(vlm, encoded.text, *SIZES)
    assert encoded.image_size == SIZES[box_image]
    assert encoded.resized == resized_size(vlm, SIZES[box_image])


def test_without_places_images_come_first_in_their_order(vlm: Vlm) -> None:
    first, second = noise_image(0), noise_image(1)
    free = encode_prompt(vlm, [first, second], turns_of("red square", images=2))
    placed = encode_prompt(vlm, [first, second], "<image> <image>\nred square")
    swapped = encode_prompt(vlm, [second, first], "<image><image>red square")
    assert free.input_ids.equal(placed.input_ids) and free.input_ids.equal(swapped.input_ids)
    assert free.tensors["pixel_values"].equal(placed.tensors["pixel_values"])
    assert not free.tensors["pixel_values"].equal(swapped.tensors["pixel_values"])


def test_a_prompts_system_turn_stands_in_place_of_the_runs(vlm: Vlm) -> None:
    own = replace(vlm, chat=ChatSettings(system_prompt="blue circle"))
    with_history = render_prompt(own, turns_of("where?", [("system", "one two")]))
    assert "one two" in with_history and "blue circle" not in with_history
    assert "blue circle" in render_prompt(own, turns_of("where?"))
    assert with_history == render_prompt(vlm, turns_of("where?", [("system", "one two")]))


def test_control_tokens_in_an_earlier_turn_stay_text(vlm: Vlm) -> None:
    end = vlm.tokenizer.eos_token
    spelled = [("user", "red"), ("assistant", f"a{end}b")]
    encoded = encode_prompt(vlm, noise_image(0), turns_of("where?", spelled))
    usual = encode_prompt(
        vlm, noise_image(0), turns_of("where?", [("user", "red"), ("assistant", "ab")])
    )
    assert encoded.input_ids.tolist().count(vlm.tokenizer.eos_token_id) == (
        usual.input_ids.tolist().count(vlm.tokenizer.eos_token_id)
    )


def with_template(vlm: Vlm, template: str) -> Vlm:
    processor = copy.copy(vlm.processor)
    processor.chat_template = template
    return replace(vlm, processor=processor)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    return load_without_weights(
        resolve_model(str(save_tiny_family("llava", tmp_path_factory.mktemp("one"))))
    )


FIRST_IMAGE_ALONE = (
    "{{ '<image>\n' }}{% for message in messages %}{% for part in message['content'] "
    "if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endfor %}"
)


def test_a_model_that_takes_one_image_is_refused_with_the_first_such_prompt(llava: Vlm) -> None:
    columns = ["prompt_id", "place", "more_image_facts"]
    schema = pa.schema([PROMPTS.columns.field(name) for name in columns])
    facts = [{"sha256": "", "width": 1, "height": 1, "notes": []}]
    one = pa.Table.from_pylist([{"prompt_id": "p1", "place": "d.jsonl:1"}], schema)
    rows = [{"prompt_id": "p2", "place": "d.jsonl:2", "more_image_facts": facts}]
    both = pa.concat_tables([one, pa.Table.from_pylist(rows, schema)])
    refuse_several_images(llava, both)
    poor = with_template(llava, FIRST_IMAGE_ALONE)
    refuse_several_images(poor, one)
    with pytest.raises(InputError) as caught:
        refuse_several_images(poor, both)
    assert "several images, and this LLaVA-1.5 model takes one: the model's chat template writes 1 "
    assert "of the prompt's 2 images" in str(caught.value)
    assert "d.jsonl:2 (prompt p2)" in str(caught.value)


def test_a_template_that_leaves_out_or_refuses_earlier_turns_is_an_error(llava: Vlm) -> None:
    turns = turns_of("where?", [("user", "red"), ("assistant", "blue")])
    last_alone = (
        "{{ '<image>' }}{% for part in messages[-1]['content'] if part['type'] == 'text' %}"
        "{{ part['text'] }}{% endfor %}"
    )
    with pytest.raises(InputError, match="does not read earlier turns of the assistant"):
        render_prompt(with_template(llava, last_alone), turns)
    refuses = "{{ raise_exception('no turn but one') if messages | length > 3 else '' }}"
    whole = str(llava.processor.chat_template)
    more = turns_of(
        "where?", [("user", "a b"), ("assistant", "c"), ("user", "d"), ("assistant", "e")]
    )
    with pytest.raises(InputError, match="refuses the prompt's turns: no turn but one"):
        render_prompt(with_template(llava, refuses + whole), more)
    forgets = whole.replace("for message in messages", "for message in messages[-3:]")
    with pytest.raises(InputError, match="does not write the earlier turn of the user"):
        render_prompt(with_template(llava, forgets), more)


@pytest.mark.parametrize(
    ("prompt", "history", "count", "expected"),
    [
        ("ab", [], 2, [("", "", "ab")]),
        ("ab", [("user", "c"), ("assistant", "d")], 2, [("", "", "c"), ("d",), ("ab",)]),
        ("ab", [("system", "s")], 1, [("s",), ("", "ab")]),
        ("<image>\n<image>\n ab", [], 2, [("", "", "ab")]),
        ("a <image> <image> b", [], 2, [("a ", "", " b")]),
        (
            "a<image>",
            [("user", "<image> x"), ("assistant", "d")],
            2,
            [("", "x"), ("d",), ("a", "")],
        ),
    ],
)
def test_texts_around_images(
    prompt: str, history: Any, count: int, expected: list[tuple[str, ...]]
) -> None:
    turns = turns_of(prompt, history, count)
    assert [turn.texts for turn in turns] == expected
    assert sum(turn.num_images for turn in turns) == count
    assert turns[-1] == Turn("user", expected[-1])
