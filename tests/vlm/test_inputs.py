"""Errors of one row name the dataset's file and line, and the image."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from tiny_families import save_tiny_family
from transformers import LlamaConfig

from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.errors import ArtifactError, InputError
from perpo_pipeline.train.lists import TrainingList, ground_truth_list
from perpo_pipeline.vlm.chat import answer_turn
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.images import image_sha256
from perpo_pipeline.vlm.inputs import (
    RowError,
    context_length,
    count_row_tokens,
    encode_row,
    prompt_image,
)
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import Vlm

LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    directory = save_tiny_family("qwen2_5_vl", tmp_path_factory.mktemp("qwen"))
    return load_vlm(resolve_model(str(directory)), dtype="float32", device="cpu")


def strip(tmp_path: Path, size: tuple[int, int] = (2100, 10)) -> dict[str, Any]:
    """A row whose image Qwen's processor refuses: its edges differ by a factor of 210."""
    path = tmp_path / "strip.png"
    Image.new("RGB", size).save(path)
    return {
        "prompt_id": "0f3a",
        "place": "test.jsonl:7",
        "task": "grounding",
        "image": {"bytes": None, "path": str(path)},
        "image_sha256": image_sha256(path.read_bytes()),
        "width": size[0],
        "height": size[1],
        "prompt": "Where?",
        "gt_text": None,
        "gt_box": [5, 1, 2000, 9],
        "gt_boxes": None,
        "gt_polygon": None,
        "gt_point": None,
    }


def test_an_image_that_the_model_refuses_is_named_in_every_stage(qwen: Vlm, tmp_path: Path) -> None:
    row, turn = strip(tmp_path), answer_turn(qwen)
    resized = ModelConfig(box_format="qwen2.5-vl", box_frame="resized")
    for use in (
        lambda: encode_row(qwen, row, "processor"),
        lambda: count_row_tokens(qwen, row, "processor"),
        lambda: ground_truth_list(TrainingList(row, [[1]], [0.5], [1]), qwen, resized, turn),
    ):
        with pytest.raises(RowError) as caught:
            use()
        image = tmp_path / "strip.png"
        assert caught.value.where == f"test.jsonl:7 (prompt 0f3a), image {image}"
        assert caught.value.reason == f"{caught.value.what} (image {image})"
        assert "remove the row" in str(caught.value.fix)


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_an_image_that_is_gone_or_changed_is_named(tmp_path: Path, change: str) -> None:
    row = strip(tmp_path)
    path = tmp_path / "strip.png"
    path.unlink() if change == "gone" else path.write_bytes(b"x")
    message = "No such file" if change == "gone" else "has changed since `perpo prepare`"
    with pytest.raises(ArtifactError, match=message) as caught:
        prompt_image(row)
    assert caught.value.where == f"test.jsonl:7 (prompt 0f3a), image {path}"


def test_an_embedded_image_is_named_by_its_row(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, "PNG")
    row = strip(tmp_path) | {"image": {"bytes": file.getvalue()[:40], "path": None}}
    with pytest.raises(InputError) as caught:
        prompt_image(row)
    assert caught.value.where == "test.jsonl:7 (prompt 0f3a), its image"


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "default"}, 512),
        ({"rope_type": "yarn", "factor": 4.0}, 2048),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "dynamic", "factor": 2.0}, 1024),
        ({"rope_type": "llama3", "factor": 8.0, **LLAMA3}, 512),  # its number has the factor
    ],
)
def test_the_context_is_as_long_as_the_positions_that_the_config_stretches(
    rope: dict[str, Any], limit: int
) -> None:
    config = LlamaConfig(max_position_embeddings=512, rope_parameters={**rope, "rope_theta": 1e4})
    vlm: Any = SimpleNamespace(model=SimpleNamespace(config=config))
    assert context_length(vlm) == limit
