"""`perpo eval` on a tiny Qwen2.5-VL: answers are read in the frame that its processor made."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_families import save_tiny_family

from perpo_pipeline.config import RunConfig
from perpo_pipeline.evaluate.stage import evaluate
from perpo_pipeline.prepare.stage import prepare
from perpo_pipeline.sample import transformers_backend
from perpo_pipeline.sample.backend import Completion
from perpo_pipeline.stage import Run

SIZES = [(71, 53), (40, 96)]
RESIZED = [(84, 56), (28, 84)]  # 2 to 12 tokens of 28 x 28 pixels


def make_run(root: Path, model: dict[str, Any], text_task: bool = False) -> Run:
    """Two prompts, whose true box is the upper left quarter; a prompt knows it from its size."""
    rows = []
    for number, size in enumerate(SIZES):
        pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        truth = {"task": "ocr", "gt_text": "a"} if text_task else {
            "task": "grounding", "gt_box": [0, 0, size[0] / 2, size[1] / 2]
        }  # fmt: skip
        rows.append({"image": f"{number}.png", "prompt": "Where?", **truth})
    (root / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = {"source": "jsonl", "path": str(root / "data.jsonl")}
    config = {
        "run": "r",
        "data_root": str(root / "data"),
        "model": {"id": str(root / "model"), "dtype": "float32", "device": "cpu", **model},
        "prepare": {"test": source, "train": source},
        "eval": {"max_new_tokens": 4, "batch_size": 1},
    }
    run = Run(RunConfig.model_validate(config), quiet=True)
    prepare(run, "test")
    return run


@pytest.fixture
def answers_with_the_quarter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model answers with the upper left quarter of what it sees, in pixels of that."""

    def greedy(vlm: Any, prompts: Any, **_: Any) -> list[Completion]:
        quarters = [[0, 0, prompt.resized[0] // 2, prompt.resized[1] // 2] for prompt in prompts]
        texts = [json.dumps({"bbox_2d": quarter}) for quarter in quarters]
        return [Completion(text, (1,), "stop", 0.0) for text in texts]

    save_tiny_family("qwen2_5_vl", tmp_path / "model")
    monkeypatch.setattr(transformers_backend, "greedy_decode", greedy)


@pytest.mark.usefixtures("answers_with_the_quarter")
def test_boxes_are_read_in_the_resized_image_which_is_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, {"box_format": "qwen2.5-vl", "box_frame": "resized"})
    metrics = evaluate(run, "base").table().to_pylist()
    rows = run.latest("predictions", "base").table().to_pylist()
    assert [tuple(row["resized"]) for row in rows] == RESIZED
    assert [row["box"] for row in rows] == [[0, 0, w / 2, h / 2] for w, h in SIZES]
    assert {row["name"]: row["value"] for row in metrics}["miou"] == 1.0
    assert "models answer in" not in capsys.readouterr().err


@pytest.mark.usefixtures("answers_with_the_quarter")
def test_another_image_is_read_in_its_own_resized_image(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"box_format": "qwen2.5-vl", "box_frame": "resized"})
    evaluate(run, "base-other-image")
    rows = run.latest("predictions", "base-other-image").table().to_pylist()
    assert [tuple(row["resized"]) for row in rows] == RESIZED[::-1]
    assert [row["reward"] for row in rows] == [1.0, 1.0]


@pytest.mark.usefixtures("answers_with_the_quarter")
@pytest.mark.parametrize("text_task", [False, True])
def test_boxes_that_are_not_the_familys_own_are_told(
    text_task: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(make_run(tmp_path, {}, text_task), "base")
    told = "qwen2.5-vl models answer in qwen2.5-vl, resized" in capsys.readouterr().err
    assert told is not text_task
