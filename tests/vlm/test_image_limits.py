"""model.min_pixels, max_pixels and max_tiles: the same image in every part of the program."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_stand_in import stand_in_hub
from tiny_families import save_tiny_family
from tiny_models import noise_image

from perpo_pipeline.answers.boxes import format_box, parse_box
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.vlm import inputs
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.image_limits import ImageLimits
from perpo_pipeline.vlm.loading import load_vlm, load_without_weights
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.prompts import (
    count_prompt_tokens,
    encode_prompt,
    render_prompt,
    resized_size,
)

# The limits of each tiny family that has any: a wider and a narrower image than its own.
LIMITS = {
    "qwen2_5_vl": (ImageLimits(max_pixels=4 * 28**2), ImageLimits(6 * 28**2, 30 * 28**2)),
    "qwen3_vl": (ImageLimits(max_pixels=5 * 32**2 + 7), ImageLimits(min_pixels=8 * 32**2)),
    "llava_next": (ImageLimits(max_tiles=2), ImageLimits(max_tiles=3)),
    "llava_onevision": (ImageLimits(max_tiles=1), ImageLimits(max_tiles=4)),
    "internvl": (ImageLimits(max_tiles=1), ImageLimits(max_tiles=9)),
}
CASES = [(kind, one) for kind, both in LIMITS.items() for one in both]
SIZES = ((50, 30), (30, 50), (200, 200), (403, 302), (20, 150), (28, 28))


@pytest.fixture(scope="module")
def model_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    kinds = (*LIMITS, "llava")
    return {kind: save_tiny_family(kind, tmp_path_factory.mktemp(kind)) for kind in kinds}


def load(directory: Path, limits: ImageLimits, *, whole: bool = False) -> Vlm:
    resolved = dataclasses.replace(resolve_model(str(directory)), limits=limits)
    return load_vlm(resolved, device="cpu") if whole else load_without_weights(resolved)


@pytest.mark.parametrize(("kind", "limits"), CASES)
def test_tokens_counted_from_sizes_are_those_of_the_processor_and_of_the_model(
    kind: str, limits: ImageLimits, model_dirs: dict[str, Path]
) -> None:
    vlm, usual = load(model_dirs[kind], limits, whole=True), load(model_dirs[kind], ImageLimits())
    differing = 0
    for width, height in SIZES:
        prompt = encode_prompt(vlm, noise_image(1, width, height), "Where?")
        text = render_prompt(vlm, "Where?")
        assert count_prompt_tokens(vlm, text, (width, height)) == prompt.num_tokens
        assert resized_size(vlm, (width, height)) == prompt.resized
        assert prompt.positions.shape[1] == prompt.num_tokens
        differing += count_prompt_tokens(usual, text, (width, height)) != prompt.num_tokens
        with torch.inference_mode():  # the model finds as many features as there are placeholders
            kinds = {} if prompt.token_types is None else {"mm_token_type_ids": prompt.token_types}
            logits = vlm.model(
                input_ids=prompt.input_ids[None],
                **{name: value[None] for name, value in kinds.items()},
                **prompt.tensors,
            ).logits
        assert logits.shape[1] == prompt.num_tokens
    assert differing


@pytest.mark.parametrize("limits", [ImageLimits(), *LIMITS["qwen2_5_vl"]])
def test_the_frame_of_the_resized_image_follows_the_limits_and_inverts(
    limits: ImageLimits, model_dirs: dict[str, Path]
) -> None:
    """A box is written in pixels of the resized image: read back, it is off by rounding alone."""
    vlm = load(model_dirs["qwen2_5_vl"], limits)
    for size in SIZES:
        resized = encode_prompt(vlm, noise_image(1, *size), "Where?").resized
        assert resized is not None and resized == resized_size(vlm, size)
        width, height = size
        for x, y in itertools.product((0, 0.3, 0.8), repeat=2):
            box = (x * width, y * height, width, height)
            frame: Any = {"frame": "resized", "image_size": size, "resized": resized}
            read = parse_box(format_box(box, "qwen2.5-vl", **frame), "qwen2.5-vl", **frame)
            assert read is not None
            step = max(width / resized[0], height / resized[1])
            assert max(abs(a - b) for a, b in zip(read, box, strict=True)) <= step


@pytest.mark.parametrize(
    ("kind", "limits", "words"),
    [
        ("qwen2_5_vl", ImageLimits(max_pixels=783), "less than one image token .* 28 x 28"),
        ("qwen3_vl", ImageLimits(max_pixels=1023), "less than one image token .* 32 x 32"),
        ("qwen3_vl", ImageLimits(max_pixels=1024), "the model's own min_pixels is 2,048"),
        ("qwen3_vl", ImageLimits(max_tiles=2), "model.max_tiles: .* has no tiles"),
        ("llava_next", ImageLimits(max_tiles=1), "smallest grid of this model has 2 tiles"),
        ("llava_next", ImageLimits(max_pixels=999), "model.max_pixels: .* cuts each image"),
        ("internvl", ImageLimits(min_pixels=999), "model.min_pixels: .* cuts each image"),
        ("llava", ImageLimits(max_tiles=2), "model.max_tiles: .* no setting for the size"),
    ],
)
def test_an_impossible_limit_is_one_error_without_the_weights(
    kind: str, limits: ImageLimits, words: str, model_dirs: dict[str, Path], tmp_path: Path
) -> None:
    for file in model_dirs[kind].iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(ConfigError, match=words):
        inputs.find_model(ModelConfig(id=str(tmp_path), device="cpu", **limits.given()), tmp_path)


def test_a_hub_models_limit_is_checked_before_its_weights_are_downloaded(
    model_dirs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = stand_in_hub(monkeypatch, model_dirs["llava"])
    config = ModelConfig(id="somebody/model", device="cpu", max_pixels=10**6)
    with pytest.raises(ConfigError, match="no setting for the size of an image"):
        inputs.find_model(config, tmp_path)
    assert len(asked) == 1 and not [one for one in asked[0] if "safetensors" in one]


def test_only_limits_that_are_set_are_recorded(model_dirs: dict[str, Path], tmp_path: Path) -> None:
    base = {"id": str(model_dirs["qwen3_vl"]), "device": "cpu"}
    _, usual = inputs.find_model(ModelConfig(**base), tmp_path)
    resolved, limited = inputs.find_model(ModelConfig(**base, max_pixels=4096), tmp_path)
    assert set(usual) == {"model", "dtype", "preprocess"}
    assert limited == usual | {"max_pixels": 4096}
    assert resolved.limits == ImageLimits(max_pixels=4096)
