"""`perpo eval` on a tiny Qwen2.5-VL: answers are read in the frame that its processor made."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from synthetic_run import make_synthetic_run
from tiny_families import save_tiny_family

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.config.sources import TableSource
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.evaluate.conditioning import (
    IMAGES,
    condition,
    conditioning_rows,
    conditioning_table,
)
from perpo_pipeline.evaluate.evaluate_model import evaluate, refuse_images_of
from perpo_pipeline.inference import transformers_backend
from perpo_pipeline.prepare.prepare_prompts import prepare
from perpo_pipeline.run import Run
from perpo_pipeline.vlm.completion import Completion
from perpo_pipeline.vlm.images import load_image
from perpo_pipeline.vlm.inputs import encode_row

SIZES = [(71, 53), (40, 96)]
RESIZED = [(84, 56), (28, 84)]  # 2 to 12 tokens of 28 x 28 pixels


def make_run(root: Path, model: dict[str, Any], text_task: bool = False) -> Run:
    """Two prompts; the true box of each is the upper left quarter of its image."""
    rows = []
    for number, size in enumerate(SIZES):
        pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        truth = (
            {"task": "ocr", "gt_text": "a"}
            if text_task
            else {"task": "grounding", "gt_box": [0, 0, size[0] / 2, size[1] / 2]}
        )
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
    """The model answers with the upper left quarter of the image it sees, in its pixels."""

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
    metrics = evaluate(run, "base@test").table().to_pylist()
    rows = run.latest("predictions", "base@test").table().to_pylist()
    assert [tuple(row["resized"]) for row in rows] == RESIZED
    assert [row["box"] for row in rows] == [[0, 0, w / 2, h / 2] for w, h in SIZES]
    assert {row["name"]: row["value"] for row in metrics}["miou"] == 1.0
    assert "models answer in" not in capsys.readouterr().err


@pytest.mark.usefixtures("answers_with_the_quarter")
def test_answers_to_another_image_are_read_in_its_own_resized_image(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"box_format": "qwen2.5-vl", "box_frame": "resized"})
    evaluate(run, "base-other-image@test")
    rows = run.latest("predictions", "base-other-image@test").table().to_pylist()
    assert [tuple(row["resized"]) for row in rows] == RESIZED[::-1]
    assert [row["reward"] for row in rows] == [1.0, 1.0]


@pytest.mark.usefixtures("answers_with_the_quarter")
def test_a_blank_image_is_as_large_as_the_true_one_and_has_one_colour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def encode(vlm: Any, row: Any, preprocess: str, *opened: Any) -> Any:
        seen.append(load_image(row["image"]["bytes"], where="blank"))
        return encode_row(vlm, row, preprocess, *opened)

    monkeypatch.setattr("perpo_pipeline.inference.transformers_backend.encode_row", encode)
    run = make_run(tmp_path, {"box_format": "qwen2.5-vl", "box_frame": "resized"})
    evaluate(run, "base-blank-image@test")
    rows = run.latest("predictions", "base-blank-image@test").table().to_pylist()
    assert [tuple(row["resized"]) for row in rows] == RESIZED
    assert {row["image_prompt_id"] for row in rows} == {"blank"}
    assert [image.size for image in seen] == SIZES
    assert all(len(image.getcolors() or ()) == 1 for image in seen)


@pytest.mark.usefixtures("answers_with_the_quarter")
def test_a_split_that_is_added_is_decoded_and_the_others_are_left_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"box_format": "qwen2.5-vl", "box_frame": "resized"}
    run = make_run(tmp_path, model)
    first = evaluate(run, "base@test")
    prepare(run, "train")
    both = run.config.eval.model_copy(update={"splits": ["train", "test"]})
    wider = replace(run, config=run.config.model_copy(update={"eval": both}))
    decoded: list[int] = []
    greedy = transformers_backend.greedy_decode

    def counted(vlm: Any, prompts: Any, **more: Any) -> Any:
        decoded.append(len(prompts))
        return greedy(vlm, prompts, **more)

    monkeypatch.setattr(transformers_backend, "greedy_decode", counted)
    made = {name: evaluate(wider, name) for name in ("base@train", "base@test")}
    assert sum(decoded) == len(SIZES), "only the new split is decoded"
    assert made["base@test"].path == first.path != made["base@train"].path
    assert run.latest("metrics", "base@train").table()["split"].to_pylist()[0] == "train"


@pytest.mark.usefixtures("answers_with_the_quarter")
@pytest.mark.parametrize("text_task", [False, True])
def test_boxes_in_another_format_than_the_familys_own_are_reported(
    text_task: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(make_run(tmp_path, {}, text_task), "base@test")
    reported = "qwen2.5-vl models answer in qwen2.5-vl, resized" in capsys.readouterr().err
    assert reported is not text_task


def test_answers_without_a_box_raise_a_doubt_only_where_the_image_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def greedy(vlm: Any, prompts: Any, **_: Any) -> list[Completion]:
        return [Completion("I see a grey square.", (1,), "stop", 0.0) for _ in prompts]

    save_tiny_family("qwen2_5_vl", tmp_path / "model")
    monkeypatch.setattr(transformers_backend, "greedy_decode", greedy)
    run = make_run(tmp_path, {"box_format": "qwen2.5-vl", "box_frame": "resized"})
    evaluate(run, "base-blank-image@test")
    assert "could be read" not in capsys.readouterr().err
    evaluate(run, "base@test")
    assert "only 0 of 2 answers could be read" in capsys.readouterr().err


def test_prompts_whose_images_the_adapter_was_trained_on_are_refused(tmp_path: Path) -> None:
    """Two prompts share an image: each image of the kept lists is counted once."""
    run = make_synthetic_run(tmp_path, num_prompts=12, methods=("perpo",))
    adapter = run.latest("adapter", "perpo")
    refuse_images_of(adapter, run.latest("prompts", "test"))
    kept = set(run.latest("preferences", "train").table()["prompt_id"].to_pylist())
    rows = run.latest("prompts", "train").table().to_pylist()
    images = {row["image_sha256"] for row in rows if row["prompt_id"] in kept}
    with pytest.raises(ArtifactError, match=f"trained on {len(images)} of the 6 images"):
        refuse_images_of(adapter, run.latest("prompts", "train"))
    # An image of several counts wherever it stands.
    seen = next(row["image"]["bytes"] for row in rows if row["prompt_id"] in kept)
    (tmp_path / "seen.png").write_bytes(seen)
    Image.new("RGB", (9, 9), "red").save(tmp_path / "new.png")
    asked = {"task": "vqa", "prompt": "Which is red?", "gt_text": "the second"}
    (tmp_path / "two.jsonl").write_text(json.dumps({**asked, "images": ["seen.png", "new.png"]}))
    source = TableSource(source="jsonl", path=tmp_path / "two.jsonl")
    both = Run(run.config.model_copy(update={"prepare": {"two": source}}), quiet=True)
    with pytest.raises(ArtifactError, match="trained on 1 of the 2 images"):
        refuse_images_of(adapter, prepare(both, "two"))


def test_wrong_images_are_measured_with_the_same_normal_forms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(vlm: Any, prompts: Any, **_: Any) -> list[Completion]:
        return [Completion("# a", (1,), "stop", 0.0) for _ in prompts]

    save_tiny_family("qwen2_5_vl", tmp_path / "model")
    monkeypatch.setattr(transformers_backend, "greedy_decode", greedy)
    run = make_run(tmp_path, {}, text_task=True)
    forms = run.config.eval.model_copy(update={"normalise": ["markdown"]})
    run = replace(run, config=run.config.model_copy(update={"eval": forms}))
    (distance,) = [
        row["value"]
        for row in evaluate(run, "base@test").table().to_pylist()
        if row["name"] == "edit_distance"
    ]
    rows = [row for row in condition(run, "base", "test") if row["name"] == "edit_distance"]
    assert [row["value"] for row in rows] == [distance] * 3 == [0.0] * 3


def test_images_are_compared_on_the_prompts_shown_with_every_image(tmp_path: Path) -> None:
    """The true image was shown with 12 prompts, the others with 6: these 6 count."""
    run = make_synthetic_run(tmp_path, num_prompts=12, methods=("perpo",))
    predictions = {
        image: run.latest("predictions", f"perpo{name}@test") for image, name in IMAGES.items()
    }
    rows = conditioning_rows("perpo", "test", predictions)
    assert {row["n"] for row in rows} == {6}
    values = {row["image"]: row["value"] for row in rows if row["name"] == "ap50"}
    assert list(values) == ["true", "shuffled", "blank"]
    assert values["true"] > values["blank"]
    table = conditioning_table(rows).splitlines()
    assert table[0].split() == [
        "model",
        "split",
        "image",
        "ap50",
        "ap75",
        "miou",
        "parse_rate",
        "out_of_frame_rate",
        "n",
    ]
    assert [line.split()[:3] for line in table[1:]] == [
        ["perpo", "test", image] for image in values
    ]
