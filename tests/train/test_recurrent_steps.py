"""Whole models with recurrent layers on packed lists, against their own separate forwards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import noise_image
from tiny_recurrent import (
    HYBRIDS,
    as_qwen3_5,
    lfm2_prompt,
    lfm2_vlm,
    save_tiny_qwen3_5,
    tiny_hybrid,
    without_processor,
)
from tiny_training import LENGTHS, completions_of
from torch import Tensor

from perpo_pipeline.train.separate_rows import separate_lists, separate_logps
from perpo_pipeline.train.shared_prefix import (
    CompletionList,
    pack_lists,
    packed_logps,
)
from perpo_pipeline.vlm.attention import use_shared_prefix_attention
from perpo_pipeline.vlm.image_place import turns_of
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm, base_model
from perpo_pipeline.vlm.prompts import encode_prompt
from perpo_pipeline.vlm.recurrent import (
    use_recurrent_steps,
)

SIZES = [[(48, 40)], [(90, 40)], [(64, 64), (40, 72)]]  # of the images of each prompt
TARGETS = (
    r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|out_proj|in_proj|in_proj_qkv|in_proj_z"
    r"|in_proj_a|in_proj_b|gate_proj|up_proj|down_proj|w1|w2|w3)"
)


@pytest.fixture(scope="module")
def with_experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_qwen3_5(tmp_path_factory.mktemp("qwen3_5_moe"), experts=True)


def qwen3_5(folder: Path) -> tuple[Vlm, list[CompletionList]]:
    vlm = as_qwen3_5(folder)
    prompts = [
        encode_prompt(
            vlm,
            [noise_image(seed, *size) for size in sizes],
            turns_of("where is it" + " on the left?" * seed, images=len(sizes)),
        )
        for seed, sizes in enumerate(SIZES)
    ]
    return vlm, with_completions(vlm, prompts)


def lfm2_vl() -> tuple[Vlm, list[CompletionList]]:
    vlm = lfm2_vlm()
    return vlm, with_completions(vlm, [lfm2_prompt(0), lfm2_prompt(9), lfm2_prompt(4, 2)])


def with_completions(vlm: Vlm, prompts: Sequence[EncodedPrompt]) -> list[CompletionList]:
    completion = completions_of(vlm)
    return [
        CompletionList(prompt, [completion(length) for length in lengths])
        for prompt, lengths in zip(prompts, LENGTHS, strict=True)
    ]


@pytest.fixture(params=["qwen3_5", "qwen3_5_moe", "lfm2_vl"])
def family(
    request: pytest.FixtureRequest, tiny_qwen3_5: Path, with_experts: Path
) -> tuple[Vlm, list[CompletionList]]:
    if request.param == "lfm2_vl":
        return lfm2_vl()
    return qwen3_5(tiny_qwen3_5 if request.param == "qwen3_5" else with_experts)


def with_adapter(vlm: Vlm) -> Any:
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS)
    model = get_peft_model(vlm.model, config).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def gradients(model: Any, logps: Tensor) -> dict[str, Tensor]:
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    (logps * weights).sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("one_row", [False, True])
def test_values_and_gradients_are_those_of_separate_forwards(
    family: tuple[Vlm, list[CompletionList]], one_row: bool, split: bool
) -> None:
    vlm, lists = family
    model = with_adapter(vlm)
    plain = separate_logps(model, separate_lists(vlm, lists))
    expected = gradients(model, plain)
    inner = base_model(model)
    use_recurrent_steps(inner)
    if split:
        use_shared_prefix_attention(inner, flex=False)
    ours = packed_logps(model, pack_lists(vlm, lists, one_row=one_row))
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=0)
    found = gradients(model, ours)
    assert found.keys() == expected.keys()
    assert any("in_proj" in name for name in found)
    for name, gradient in found.items():
        assert gradient.norm() > 0, name
        assert (gradient - expected[name]).norm() < 1e-4 * expected[name].norm(), name


def test_without_steps_there_is_no_mask(family: tuple[Vlm, list[CompletionList]]) -> None:
    """Else each answer would continue from the one before it, silently."""
    vlm, lists = family
    with pytest.raises(KeyError):
        packed_logps(vlm.model, pack_lists(vlm, lists))


def test_gradient_checkpointing_runs_the_same_steps_again(tiny_qwen3_5: Path) -> None:
    """Also if another batch was packed in between, as for reference log-probabilities."""
    vlm, lists = qwen3_5(tiny_qwen3_5)
    model = with_adapter(vlm)
    use_recurrent_steps(base_model(model))
    batch = pack_lists(vlm, lists)
    expected = gradients(model, packed_logps(model, batch))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    logps = packed_logps(model, batch)
    with torch.no_grad():
        packed_logps(model, pack_lists(vlm, lists[:1]))
    for name, gradient in gradients(model, logps).items():
        torch.testing.assert_close(gradient, expected[name])


@torch.no_grad()
@pytest.mark.parametrize("one_row", [False, True])
@pytest.mark.parametrize("name", HYBRIDS)
def test_steps_reach_the_layers_of_other_hybrids(name: str, one_row: bool) -> None:
    """Text models only: each hands the masks to its layers in its own way."""
    vlm = without_processor(tiny_hybrid(name))
    lists = with_completions(vlm, [_text_prompt(length) for length in (20, 7, 20)])
    plain = separate_logps(vlm.model, separate_lists(vlm, lists))
    batch = pack_lists(vlm, lists, one_row=one_row)
    use_recurrent_steps(vlm.model)
    torch.testing.assert_close(packed_logps(vlm.model, batch), plain, atol=1e-4, rtol=0)


def _text_prompt(length: int) -> EncodedPrompt:
    return EncodedPrompt(
        input_ids=torch.randint(10, 290, (length,), generator=torch.Generator().manual_seed(9)),
        tensors={},
        positions=torch.arange(length)[None],
        next_position=length,
        image_size=(1, 1),
        padded_size=(1, 1),
        resized=None,
    )
