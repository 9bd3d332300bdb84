"""The measurements of a testbed model: its own greedy decoding, reading answers, IoU."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from perpo_pipeline.rewards.text import edit_similarity
from perpo_pipeline.testbed import SHIPPED_PRESET, shipped_model_dir
from perpo_pipeline.testbed.pages import PAGE_PROMPT
from tools.testbed import measure
from tools.testbed.measure import (
    answer_ious,
    fresh_examples,
    fresh_pages,
    iou,
    measure_all,
    page_distances,
    parse_answer,
    sampled_texts,
)
from tools.testbed.model import INSTRUCTION


@pytest.fixture(scope="module")
def shipped():
    folder = shipped_model_dir()
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    return model.eval(), AutoProcessor.from_pretrained(folder, local_files_only=True)


def generated(model, processor, image, question, max_new_tokens):
    """The greedy answer of transformers' own `generate` to one question."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    out = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    return processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_own_greedy_decoding_equals_generate(shipped):
    model, processor = shipped
    examples = fresh_examples(78, 8, SHIPPED_PRESET)
    ious, _ = answer_ious(model, processor, examples)
    for example, (value,) in zip(examples, ious.tolist(), strict=True):
        text = generated(model, processor, example.image, INSTRUCTION + example.expression, 20)
        box = parse_answer(text)
        truth = [edge / example.image.width for edge in example.box_xyxy_px]
        assert value == pytest.approx(iou(box, truth) if box else 0.0, abs=1e-6)


def test_own_greedy_reading_equals_generate(shipped):
    model, processor = shipped
    pages = fresh_pages(78, 3, SHIPPED_PRESET)
    distances = page_distances(model, processor, pages)
    for page, (value,) in zip(pages, distances.tolist(), strict=True):
        text = generated(model, processor, page.image, PAGE_PROMPT, 120)
        assert value == pytest.approx(1 - edit_similarity(text, page.text), abs=1e-6)


def test_sampled_figures_are_of_the_answers(monkeypatch):
    """Best of 1: .1 and .4, best of 3: .1 and .2, margins .2 and .2; of a sixth each: .03."""
    distances = torch.tensor([[0.1, 0.3, 0.2], [0.4, 0.2, 0.4]])
    monkeypatch.setattr(measure, "page_distances", lambda *_, **__: distances)
    found = sampled_texts(None, None, [], num_samples=3)
    assert found["sampled_edit_distance_best_of_1"] == pytest.approx(0.25)
    assert found["sampled_edit_distance_best_of_3"] == pytest.approx(0.15)
    assert found["sampled_edit_margin_004"] == 1.0
    monkeypatch.setattr(measure, "page_distances", lambda *_, **__: distances * 0.15)
    assert sampled_texts(None, None, [], num_samples=3)["sampled_edit_margin_004"] == 0.0


def test_a_preset_without_pages_has_figures_of_boxes_alone(shipped, monkeypatch):
    figures = measure_all(*shipped, 78, 2, SHIPPED_PRESET)
    assert {"ap50", "edit_distance", "sampled_edit_margin_004"} <= set(figures)
    monkeypatch.setattr(measure, "PAGE_PRESETS", {})
    alone = measure_all(*shipped, 78, 2, SHIPPED_PRESET)
    assert alone == {name: value for name, value in figures.items() if "edit" not in name}


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.12, 0.34, 0.56, 0.78]", (0.12, 0.34, 0.56, 0.78)),
        ("[0.12, 0.34, 1.00, 0.78]", (0.12, 0.34, 1.0, 0.78)),
        ("[0.12, 0.34, 0.12, 0.78]", None),
        ("[0.12, 0.34, 1.56, 0.78]", None),
        ("[0.12, 0.34, 0.56]", None),
        ("a [0.12, 0.34, 0.56, 0.78]", None),
    ],
)
def test_answers_are_parsed_as_a_whole(text, box):
    assert parse_answer(text) == box


def test_iou_of_quarter_overlap():
    """Unit squares shifted by half along both axes: 0.25 / 1.75."""
    assert iou((0, 0, 1, 1), (0.5, 0.5, 1.5, 1.5)) == pytest.approx(1 / 7)
