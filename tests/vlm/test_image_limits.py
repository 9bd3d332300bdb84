"""model.min_pixels, max_pixels and max_tiles: the same image in every part of the program."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_families import save_tiny_family
from tiny_models import noise_image

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
