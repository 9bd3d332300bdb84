"""The memory estimate: by hand for a small shape, and against the one measurement."""

from dataclasses import replace

import pytest

from perpo_pipeline.train.memory import GIB, LOGIT_BUDGET, Shape, estimate_memory

SMALL = Shape(parameters=1000, trained=100, layers=2, width=10, inner=20, kv_width=5, vocabulary=7)
# LLaVA-1.5-7B with LoRA of rank 128 on all linears of the language model
SEVEN_B = Shape(7_063_000_000, 319_815_680, 32, 4096, 11_008, 4096, 32_064)


def test_one_process_holds_everything() -> None:
    """Kept per token: 6*10 + 2*5 + 4*20 = 150 numbers per layer, 2 bytes each."""
    found = estimate_memory(SMALL, 3)
    assert found.weights == 2000
    assert found.gradients == 100 * 2 and found.optimizer == 100 * (8 + 4)
    assert found.activations == 2 * 3 * 150 * 2
    assert found.logits == 3 * 4 * 3 * 7
    assert found.total == 2000 + 200 + 1200 + 1800 + 252


def test_float32_needs_no_master_and_checkpointing_keeps_one_layer() -> None:
    found = estimate_memory(replace(SMALL, weight_bytes=4), 3, checkpointing=True)
    assert found.optimizer == 100 * 8
    assert found.activations == 2 * (3 * 10 * 4) + 3 * 150 * 4  # inputs of both layers, one whole


def test_each_zero_stage_shards_what_it_should() -> None:
    two = estimate_memory(SMALL, 3, processes=4, zero_stage=2)
    assert (two.weights, two.gradients, two.optimizer) == (2000, 50, 300)
    three = estimate_memory(SMALL, 3, processes=4, zero_stage=3)
    layer = (1000 - 2 * 7 * 10) / 2
    assert three.weights == pytest.approx(2000 / 4 + 2 * layer * 2)
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
