"""Rendered prompts are a sequence that ends; pages ask for their text, scenes for a box."""

import io
from typing import Any

import pytest
from PIL import Image

from perpo_pipeline import testbed
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.prepare.prepare_prompts import prepare
from perpo_pipeline.prepare.testbed import render_prompts
from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.testbed.pages import page_example


def test_a_loop_over_the_rows_ends_with_the_last_one() -> None:
    rows = render_prompts(testbed.testbed_settings(0, "train", 3), "train")
    found = [row["source_row"] for row in rows]  # it went on for ever
    assert len(found) == len(rows) == len(set(found)) == 3
    with pytest.raises(IndexError):
        rows[3]


def prepared(folder: Any, **source: Any) -> Version:
    config = {
        "run": "r",
        "data_root": str(folder),
        "prepare": {
            "train": {"source": "testbed", "num_prompts": 2, **source},
            "test": {"source": "testbed", "num_prompts": 1},
        },
    }
    return prepare(Run(RunConfig.model_validate(config), quiet=True), "train")


def test_a_page_is_asked_for_its_text_and_has_no_box(tmp_path: Any) -> None:
    version = prepared(tmp_path, task="ocr")
    rows = version.table().to_pylist()
    seed = version.manifest["settings"]["scene_seed"]
    for index, row in enumerate(rows):
        example = page_example(seed, index)
        assert row["gt_text"] == example.text and "\n" in row["gt_text"]
        assert (row["task"], row["dataset"]) == ("ocr", "testbed-pages-small")
        assert row["prompt"] == "Transcribe the text on this page."
        assert row["place"] == f"testbed, page {index}" and row["gt_box"] is None
        shown = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert shown.tobytes() == example.image.tobytes()
        assert (row["width"], row["height"]) == example.image.size
    assert len({row["image_sha256"] for row in rows}) == 2


def test_what_the_testbed_draws_counts_in_its_prompts(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = prepared(tmp_path)
    assert prepared(tmp_path, task="grounding").fingerprint == scenes.fingerprint
    assert prepared(tmp_path, task="ocr").fingerprint != scenes.fingerprint
    monkeypatch.setattr(testbed, "TESTBED_VERSION", testbed.TESTBED_VERSION + 1)
    assert prepared(tmp_path).fingerprint != scenes.fingerprint
