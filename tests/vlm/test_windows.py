"""Equal windows of Qwen's vision towers share one attention call, with the same results."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig

from perpo_pipeline.vlm.windows import WINDOWS, use_window_attention

LAYERS, FULL = 8, [3, 7]  # in Qwen2.5-VL's tower the others have windows of 8 x 8 patches
PHOTO = [1, 54, 72]  # 1,008 x 756 pixels: 9 x 6 whole windows, and 9 that are cut at the edge
SMALL = [1, 20, 22]
TEXT = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 40}
TEXT |= {"num_attention_heads": 2, "num_key_value_heads": 1}


class Calls(TorchFunctionMode):
    """Counts attention calls, and copies of values to the processor."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        name = getattr(function, "__name__", "")
        if name in ("scaled_dot_product_attention", "tolist", "item"):
            self.counts["attention" if "attention" in name else "copies"] += 1
        return function(*args, **(kwargs or {}))


def tower(model_type: str) -> Any:
    """A vision tower of the family with random weights, under SDPA."""
    sizes = {"depth": LAYERS, "num_heads": 2}
    vision, config = {
        "qwen2_vl": (sizes | {"embed_dim": 32, "hidden_size": 32}, Qwen2VLConfig),
        "qwen2_5_vl": (
            sizes
            | {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32}
            | {"fullatt_block_indexes": FULL, "window_size": 112},
            Qwen2_5_VLConfig,
        ),
        "qwen3_vl": (
            sizes
            | {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32}
            | {"patch_size": 14, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
            Qwen3VLConfig,
        ),
    }[model_type]
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    model = AutoModelForImageTextToText.from_config(
        config(vision_config=vision, text_config=TEXT | {"rope_parameters": rope}),
        attn_implementation="sdpa",
    )
    with torch.no_grad():
        for parameter in model.model.visual.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.12)
    return model


def outcome(model: Any, grids: list[list[int]]) -> tuple[Tensor, dict[str, Tensor], Counter[str]]:
    """The tower's features of random images, their gradients, and what was called."""
    visual = model.model.visual
    torch.manual_seed(1)
    patches = torch.randn(sum(t * h * w for t, h, w in grids), 2 * 3 * 14**2)
    with Calls() as calls:
        features = visual(patches, grid_thw=torch.tensor(grids)).last_hidden_state
    (features * torch.randn_like(features)).sum().backward()
    found = {n: p.grad.clone() for n, p in visual.named_parameters() if p.grad is not None}
    visual.zero_grad()
    return features.detach(), found, calls.counts


def test_a_photo_takes_a_call_for_each_size_of_window_and_layer() -> None:
    """Before: 63 calls and 3 copies in each layer with windows."""
    model, grids = tower("qwen2_5_vl"), [PHOTO]
    features, gradients, before = outcome(model, grids)
    use_window_attention(model)
    assert model.model.visual.config._attn_implementation == WINDOWS
    ours, own_gradients, after = outcome(model, grids)
    windowed = LAYERS - len(FULL)
    assert before["attention"] == 63 * windowed + len(FULL)
    assert after["attention"] == 2 * windowed + len(FULL)
    per_forward = after["copies"]  # transformers' own for the grid, and ours: no layer has any
    assert before["copies"] >= 3 * LAYERS > per_forward
    torch.testing.assert_close(ours, features, atol=1e-5, rtol=1e-5)
    assert own_gradients.keys() == gradients.keys()
    for name, gradient in own_gradients.items():
        assert (gradient - gradients[name]).norm() <= 1e-5 * gradients[name].norm(), name


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_images_of_several_sizes_keep_their_places(model_type: str) -> None:
    """Sorted by length and put back, with checkpointed blocks too."""
    model, grids = tower(model_type), [SMALL, PHOTO, SMALL, [1, 4, 6]]
    features, gradients, before = outcome(model, grids)
    use_window_attention(model)
    model.model.visual.gradient_checkpointing_enable({"use_reentrant": False})
    ours, own_gradients, after = outcome(model.train(), grids)
    assert after["attention"] < before["attention"]
    torch.testing.assert_close(ours, features, atol=1e-5, rtol=1e-5)
    for name, gradient in own_gradients.items():
        assert (gradient - gradients[name]).norm() <= 1e-5 * gradients[name].norm(), name


def test_other_towers_keep_sdpa() -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    small = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**small, num_hidden_layers=1, image_size=28, patch_size=14),
        text_config=LlamaConfig(**TEXT),
    )
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    use_window_attention(model)
    assert model.config.vision_config._attn_implementation == "sdpa"
