"""The memory estimate: by hand for a small shape, against what a real model keeps, and against the
one measurement on a card."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import noise_image, save_tiny_llava
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from perpo_pipeline.config.train import LoraSettings, TrainSettings
from perpo_pipeline.train.master_weights import MASTER, MasterAdamW
from perpo_pipeline.train.memory import (
    CONTEXT,
    GIB,
    LOGIT_BUDGET,
    Shape,
    estimate_memory,
    kept_bytes_per_token,
    shape_of,
)
from perpo_pipeline.train.scope import count_trained, make_trainable
from perpo_pipeline.train.separate_rows import separate_lists, separate_logps
from perpo_pipeline.train.shared_prefix import CompletionList
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm, load_without_weights
from perpo_pipeline.vlm.models import Vlm, base_model
from perpo_pipeline.vlm.prompts import encode_prompt

SMALL = Shape(
    parameters=5000, trained=100, layers=2, width=10, inner=20, kv_width=5, vocabulary=7, rank=3
)
# LLaVA-1.5-7B with LoRA of rank 128 on all linears of the language model
SEVEN_B = Shape(7_063_000_000, 319_815_680, 32, 4096, 11_008, 4096, 32_064, rank=128)
TOLERANCE = 0.06  # statistics of norms and softmax, which the formula leaves out


def test_one_process_holds_everything() -> None:
    """Kept per token: 4*10 + 2*10 + 2*5 + 3*20 + 7*3 = 151 numbers per layer, 2 bytes each."""
    found = estimate_memory(SMALL, 3)
    assert found.weights == 10_000
    assert found.gradients == 100 * 2 and found.optimizer == 100 * (8 + 4)
    assert found.activations == 2 * 3 * 151 * 2
    assert found.logits == 3 * 4 * 3 * 7
    assert found.working == 3 * (3 * 20 + 4 * 10) * 2
    assert found.total == 10_000 + 200 + 1200 + 1812 + 252 + 600 + CONTEXT
    assert found.reference == 10_000 + 252 + 600 + CONTEXT


def test_each_answer_has_the_states_of_recurrent_layers() -> None:
    """Of all layers, or of one at a time where layers are computed again."""
    hybrid = replace(SMALL, layers=4, recurrent=2, state_bytes=100)
    for checkpointing, each in ((False, 100), (True, 50)):
        with_answers, without = (
            estimate_memory(hybrid, 3, checkpointing=checkpointing, answers=n) for n in (5, 0)
        )
        assert with_answers.activations - without.activations == 5 * each


def test_the_states_of_a_hybrid_are_counted(tiny_qwen3_5: Path) -> None:
    """Three gated delta nets: 4 inputs of a convolution of 2 x 16 + 32 channels; 4 heads of 8 x 8,
    which are in fp32 also where the model computes in bf16."""
    vlm = load_without_weights(resolve_model(str(tiny_qwen3_5)))
    for weight_bytes in (2, 4):
        shape = shape_of(vlm, weight_bytes=weight_bytes)
        assert shape.recurrent == 3
        assert shape.state_bytes == 3 * (4 * 64 * weight_bytes + 4 * 8 * 8 * 4)


def test_processes_without_zero_hold_the_gradients_twice() -> None:
    """DDP reduces them in buckets, which are copies."""
    alone, two = estimate_memory(SMALL, 3), estimate_memory(SMALL, 3, processes=2)
    assert two.gradients == 2 * 100 * 2 and two.total == alone.total + 100 * 2


def test_the_update_counts_where_it_needs_more_than_the_activations() -> None:
    """Full fine-tuning: fp32 gradients for the masters, when activations are gone."""
    found = estimate_memory(replace(SMALL, trained=5000), 3)
    assert found.update == 5000 * 4 > found.activations + found.logits + found.working
    assert found.total == 10_000 + 5000 * (2 + 12) + 20_000 + CONTEXT


def test_float32_needs_no_master_and_checkpointing_keeps_one_layer() -> None:
    found = estimate_memory(replace(SMALL, weight_bytes=4), 3, checkpointing=True)
    assert found.optimizer == 100 * 8 and found.update == 0
    assert found.activations == 2 * (3 * 10 * 4) + 3 * 151 * 4  # inputs of both layers, one whole


def test_offloaded_inputs_of_layers_are_in_the_machines_memory() -> None:
    many = replace(SMALL, layers=50)
    kept = estimate_memory(many, 3, checkpointing=True)
    away = estimate_memory(many, 3, checkpointing=True, activation_offload=True)
    assert (kept.host, away.host) == (0, 50 * 3 * 10 * 2)
    assert kept.activations - away.activations == (50 - 2) * 3 * 10 * 2


def test_quantised_are_the_linear_layers_and_one_matrix_at_a_time_is_not() -> None:
    """Linears: 2 layers x (2*10*(10 + 5) + 3*10*20) = 1,800; 0.516 bytes each with its scales."""
    found = estimate_memory(replace(SMALL, quantization="nf4"), 3)
    assert SMALL.linears == 1800
    assert found.weights == pytest.approx(1800 * (0.5 + 1 / 64 + 1 / 4096) + 3200 * 2)
    assert found.working == 600 + 2 * (10 * 20 * 2)
    assert estimate_memory(replace(SMALL, quantization="int8"), 3).weights == 1800 + 6400


def test_each_zero_stage_shards_what_it_should() -> None:
    two = estimate_memory(SMALL, 3, processes=4, zero_stage=2)
    assert (two.weights, two.gradients, two.optimizer) == (10_000, 50, 300)
    three = estimate_memory(SMALL, 3, processes=4, zero_stage=3)
    layer = (5000 - 2 * 7 * 10) / 2
    assert three.weights == pytest.approx(10_000 / 4 + 2 * layer * 2)
    assert (three.gradients, three.optimizer) == (50, 300)
    away = estimate_memory(SMALL, 3, processes=4, zero_stage=3, offload=True)
    assert away.weights == pytest.approx(2 * layer * 2) and away.optimizer == 0
    assert all(e.activations == two.activations for e in (three, away))


def test_logits_are_made_in_chunks() -> None:
    shape = replace(SMALL, vocabulary=2**20)
    assert estimate_memory(shape, 10**6).logits == 3 * 4 * LOGIT_BUDGET


def test_the_estimate_for_the_7b_recipe_is_in_the_measured_range() -> None:
    """Measured on an H200: 52 to 63 GiB, 8 lists of 636 + 20 * 26 tokens, no checkpointing."""
    assert 52 < estimate_memory(SEVEN_B, 8 * (636 + 20 * 26)).total / GIB < 63


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wide = {"hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 3}
    return save_tiny_llava(tmp_path_factory.mktemp("wide"), **wide, num_key_value_heads=4)


def kept_in_layers(vlm: Vlm, batch: Any, compiled: bool) -> list[int]:
    """Bytes of the storages that each decoder layer keeps for the backward pass, without weights.

    Compiled: traced and split into forward and backward as on CUDA, without generating code.
    """
    weights = {p.untyped_storage().data_ptr() for p in vlm.model.parameters()}
    kept: list[dict[int, Tensor]] = []
    inside: list[bool] = [False]

    def enter(*_: Any) -> None:
        kept.append({})
        inside[0] = True

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if inside[0] and place not in weights:
            kept[-1][place] = tensor
        return tensor

    for layer in base_model(vlm.model).get_decoder().layers:
        assert isinstance(layer, nn.Module)
        if compiled:
            layer.compile(backend="aot_eager_decomp_partition")
        layer.register_forward_pre_hook(enter)
        layer.register_forward_hook(lambda *_: inside.__setitem__(0, False))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        separate_logps(vlm.model, batch)
    return [sum(t.untyped_storage().nbytes() for t in one.values()) for one in kept]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo looks, and hides
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_layer_keeps_what_the_formula_says(directory: Path, dtype: str, compiled: bool) -> None:
    torch._dynamo.reset()
    vlm = load_vlm(resolve_model(str(directory)), dtype=dtype, device="cpu")
    shape = replace(shape_of(vlm, weight_bytes=vlm.dtype.itemsize), rank=16)
    answers = [[5] * n + [vlm.eos_token_ids[0]] for n in (30, 40)]
    batch = separate_lists(vlm, [CompletionList(encode_prompt(vlm, noise_image(0), "?"), answers)])
    vlm.model = make_trainable(vlm, TrainSettings(lora=LoraSettings(rank=16))).train()
    kept = kept_in_layers(vlm, batch, compiled)
    expected = batch.input_ids.numel() * kept_bytes_per_token(shape, compiled=compiled)
    assert len(kept) == shape.layers == 3
    assert kept[1] == pytest.approx(expected, rel=TOLERANCE)
    assert kept[2] == pytest.approx(expected, rel=TOLERANCE)


def test_gradients_and_the_optimisers_state_are_as_large_as_counted(directory: Path) -> None:
    vlm = load_vlm(resolve_model(str(directory)), dtype="bfloat16", device="cpu")
    base = shape_of(vlm, weight_bytes=2)
    policy = make_trainable(vlm, TrainSettings(lora=LoraSettings(rank=16)))
    trained = [p for p in policy.parameters() if p.requires_grad]
    shape = replace(base, trained=count_trained(policy))
    assert shape.trained == base.lora_numbers(16)
    for p in trained:
        p.grad = torch.ones_like(p)
    optimizer = MasterAdamW(trained, lr=1e-3)
    optimizer.step()
    held = sum(
        value.nbytes
        for state in optimizer.state.values()
        for name, value in state.items()
        if name in ("exp_avg", "exp_avg_sq", MASTER)
    )
    found = estimate_memory(shape, 1)
    assert held == found.optimizer
    assert sum(p.grad.nbytes for p in trained if p.grad is not None) == found.gradients
    assert found.weights == sum(p.nbytes for p in policy.parameters() if not p.requires_grad)
