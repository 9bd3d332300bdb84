"""The shipped weights: small, in the hub's layout, of a model that looks at the image."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

from perpo_pipeline.testbed import SHIPPED_PRESET, shipped_model_dir
from tools.testbed.measure import (
    fresh_examples,
    fresh_pages,
    measure_boxes,
    measure_texts,
    swap_images,
    swap_pages,
)
from tools.testbed.model import INSTRUCTION, build_tokenizer

MAX_BYTES = 10 * 1024**2


@pytest.fixture(scope="module")
def shipped():
    folder = shipped_model_dir()
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    return model.eval(), AutoProcessor.from_pretrained(folder, local_files_only=True)


def test_shipped_directory_is_small_and_named_as_on_a_hub():
    folder = shipped_model_dir()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MAX_BYTES
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    prefixes = {".".join(name.split(".")[:2]) for name in names}
    assert prefixes == {
        "vision_tower.vision_model",
        "language_model.model",
        "language_model.lm_head",
        "multi_modal_projector.linear_1",
        "multi_modal_projector.linear_2",
    }
    assert json.loads((folder / "testbed.json").read_text())["preset"] == SHIPPED_PRESET
    assert "license: apache-2.0" in (folder / "README.md").read_text()


def test_shipped_tokenizer_is_the_one_the_code_builds(shipped):
    text = f"{INSTRUCTION}largest triangle [0.12, 1.00] naïve 漢字"
    assert shipped[1].tokenizer(text)["input_ids"] == build_tokenizer()(text)["input_ids"]


def test_shipped_model_looks_and_answers(shipped):
    model, processor = shipped
    examples = fresh_examples(77, 64, SHIPPED_PRESET)
    figures = measure_boxes(model, processor, examples)
    assert figures["ap50"] > 0.3
    assert figures["parse_rate"] > 0.9
    assert measure_boxes(model, processor, swap_images(examples))["ap50"] < 0.2


def test_shipped_model_reads_and_misreads(shipped):
    model, processor = shipped
    pages = fresh_pages(77, 24, SHIPPED_PRESET)
    assert 0.05 < measure_texts(model, processor, pages)["edit_distance"] < 0.4
    assert measure_texts(model, processor, swap_pages(pages))["edit_distance"] > 0.7
