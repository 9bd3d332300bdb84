"""Building the tiny LLaVA: hub layout, tokenizer, chat template."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText

from perpo_pipeline.testbed.scenes import PRESETS, referring_example
from tools.testbed.model import (
    INSTRUCTION,
    build_config,
    build_model,
    build_processor,
    build_tokenizer,
    hub_parameter_name,
    sincos_positions,
    write_model_dir,
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_is_decoded_unchanged(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_no_token_holds_two_digits(tokenizer):
    vocabulary = tokenizer.get_vocab()
    assert not [token for token in vocabulary if sum(c.isdigit() for c in token) > 1]
    pieces = tokenizer.tokenize("[0.12, 1.00, 2024]")
    assert pieces == ["[", "0.", "1", "2", ",Ġ", "1.", "0", "0", ",", "Ġ2", "0", "2", "4", "]"]


def test_no_token_of_a_page_s_text_holds_two_characters(tokenizer):
    """What a box joins ("0.", ", ") stands alone on a page, and a space belongs to what follows."""
    pieces = " ".join(tokenizer.tokenize("0.5 A1.2, 3X: USER\nBOX"))
    assert pieces == "0 . 5 ĠA 1 . 2 , Ġ3 X : ĠU S E R Ċ B O X"


def test_the_words_of_the_testbed_are_single_tokens(tokenizer):
    text = " blue square left of the largest leftmost circle ASSISTANT: "
    assert len(tokenizer.tokenize(text)) == 9


def test_chat_template_writes_llava_turns():
    processor = build_processor("small")
    answer = "[0.12, 0.34, 0.56, 0.78]"
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what"}]}
    reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    prompt = "USER: <image>\nwhat ASSISTANT: "
    assert processor.apply_chat_template([user], add_generation_prompt=True) == prompt
    assert processor.apply_chat_template([user, reply]) == f"{prompt}{answer}</s>"


def test_chat_template_accepts_plain_strings():
    processor = build_processor("small")
    messages = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "that"}]
    text = processor.tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "USER: what ASSISTANT: that</s>"


def test_chat_template_marks_the_answer_tokens():
    processor = build_processor("small")
    messages = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "[0.12]"}]
    out = processor.tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    marked = [i for i, m in zip(out["input_ids"], out["assistant_masks"], strict=True) if m]
    assert processor.tokenizer.decode(marked) == "[0.12]</s>"


def test_prompt_has_one_placeholder_per_patch_and_the_expression_last():
    processor = build_processor("small")
    content = [{"type": "image"}, {"type": "text", "text": f"{INSTRUCTION}red circle"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(text=text, images=referring_example(0, 0).image, return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    image_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert ids.count(image_id) == (96 // 8) ** 2
    assert processor.tokenizer.decode(ids[-3:]) == " red circle ASSISTANT: "
    assert inputs["pixel_values"].shape == (1, 3, 96, 96)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_written_directory_loads_with_equal_weights(tmp_path, preset):
    processor = build_processor(preset)
    config = build_config(preset, processor.tokenizer)
    model = build_model(config, 0)
    weights = {name: value.half().float() for name, value in model.state_dict().items()}
    write_model_dir(tmp_path / "m", preset, weights, config, processor, {"a": 1}, "# card\n")
    loaded, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "m", output_loading_info=True, local_files_only=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.dtype == torch.float32
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert json.loads((tmp_path / "m/testbed.json").read_text()) == {"preset": preset, "a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_writing_over_a_directory_replaces_all_of_it(tmp_path):
    processor = build_processor("small")
    config = build_config("small", processor.tokenizer)
    (tmp_path / "stale.bin").write_text("old")
    for seed in (0, 1):
        weights = build_model(config, seed).state_dict()
        write_model_dir(tmp_path, "small", weights, config, processor, {"seed": seed}, "# card\n")
    assert not (tmp_path / "stale.bin").exists()
    assert json.loads((tmp_path / "testbed.json").read_text())["seed"] == 1


def test_hub_names_are_those_of_llava_15():
    """Left: transformers 5.x in memory. Right: the names in llava-hf/llava-1.5-7b-hf."""
    pairs = {
        "model.vision_tower.encoder.layers.0.mlp.fc1.weight": (
            "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"
        ),
        "model.vision_tower.pre_layrnorm.bias": "vision_tower.vision_model.pre_layrnorm.bias",
        "model.multi_modal_projector.linear_1.bias": "multi_modal_projector.linear_1.bias",
        "model.language_model.embed_tokens.weight": "language_model.model.embed_tokens.weight",
        "model.language_model.norm.weight": "language_model.model.norm.weight",
        "lm_head.weight": "language_model.lm_head.weight",
    }
    assert {name: hub_parameter_name(name) for name in pairs} == pairs


def test_the_position_table_differs_at_every_patch():
    table = torch.from_numpy(sincos_positions(8, 128))
    distances = torch.cdist(table, table) + torch.eye(64) * 1e3
    assert table.shape == (64, 128)
    assert distances.min() > 1
