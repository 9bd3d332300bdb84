"""The shared prefix on families other than LLaVA-1.5, against transformers' own plain forward."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from perpo_pipeline.models import FAMILIES, EncodedPrompt, Vlm, _prompt_positions
from perpo_pipeline.sample.transformers_backend import sample_lists
from perpo_pipeline.train.shared_prefix import CompletionList, completion_logps, pack_lists

IMAGE_ID = 3
COMPLETIONS = [[11, 12, 13, 2], [21, 2], [31, 32, 33, 34, 35]]


def wrap(model: torch.nn.Module, family: str) -> Vlm:
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "vis" not in name:
            torch.nn.init.normal_(parameter, std=0.12)
    return Vlm(
        model=model.requires_grad_(False).eval(), processor=None,
        tokenizer=SimpleNamespace(
            pad_token_id=0, batch_decode=lambda ids, **kw: [str(y) for y in ids]
        ),
        family=FAMILIES[family], device=torch.device("cpu"), dtype=torch.float32,
        eos_token_ids=(2,), image_token_ids=(IMAGE_ID,), identity="random",
    )  # fmt: skip


def qwen() -> tuple[Vlm, EncodedPrompt, dict[str, torch.Tensor]]:
    """Tiny Qwen2.5-VL and an image of 4 x 6 patches: 2 x 3 tokens on three position axes."""
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3],
                                "rope_theta": 1e4},
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
            "out_hidden_size": 64, "fullatt_block_indexes": [1], "window_size": 56,
        },
        image_token_id=IMAGE_ID, vision_start_token_id=4, vision_end_token_id=5,
        video_token_id=6,
    )  # fmt: skip
    vlm = wrap(Qwen2_5_VLForConditionalGeneration(config), "qwen2_5_vl")
    ids = torch.tensor([[1, 40, 4, *[IMAGE_ID] * 6, 5, 41, 42, 43]])
    types = (ids == IMAGE_ID).int()
    tensors = {
        "pixel_values": torch.randn(24, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
    }
    positions = _prompt_positions(vlm, ids, types, tensors)
    prompt = EncodedPrompt(
        ids[0], tensors, positions, int(positions.max()) + 1, (84, 56), (84, 56), (84, 56)
    )
    return vlm, prompt, {"mm_token_type_ids": types}


def llava_next() -> tuple[Vlm, EncodedPrompt, dict[str, torch.Tensor]]:
    """Tiny LLaVA-NeXT: a square image as a base tile and 2 x 2 tiles, with new-line features."""
    torch.manual_seed(0)
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            image_size=32, patch_size=8,
        ),
        text_config=LlamaConfig(
            vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2,
        ),
        image_token_index=IMAGE_ID, image_grid_pinpoints=[[64, 64]],
    )  # fmt: skip
    vlm = wrap(LlavaNextForConditionalGeneration(config), "llava_next")
    count = 16 + 8 * (8 + 1)  # base tile, then 8 rows of 8 and a new-line each
    ids = torch.tensor([1, 40, *[IMAGE_ID] * count, 41, 42])
    tensors = {
        "pixel_values": torch.randn(1, 5, 3, 32, 32),
        "image_sizes": torch.tensor([[64, 64]]),
    }
    prompt = EncodedPrompt(
        ids, tensors, torch.arange(len(ids))[None], len(ids), (64, 64), (64, 64), None
    )
    return vlm, prompt, {}


@pytest.mark.parametrize("build", [qwen, llava_next])
def test_packed_logps_equal_the_plain_forward(build) -> None:  # type: ignore[no-untyped-def]
    vlm, prompt, extra = build()
    # A second list with another prefix length in the batch: rows are padded and aligned.
    other = replace(
        prompt,
        input_ids=torch.cat([prompt.input_ids, torch.tensor([50, 51])]),
        positions=torch.cat(
            [prompt.positions, prompt.next_position + torch.arange(2).expand(
                prompt.positions.shape[0], -1)], dim=1,
        ),
        next_position=prompt.next_position + 2,
    )  # fmt: skip
    lists = [CompletionList(prompt, COMPLETIONS), CompletionList(other, COMPLETIONS[:2])]
    with torch.no_grad():
        logps = completion_logps(vlm.model, pack_lists(vlm, lists))
    for b, entry in enumerate(lists):
        for n, completion in enumerate(entry.completions):
            ids = torch.cat([entry.prompt.input_ids, torch.tensor(completion)])[None]
            padded = {
                name: torch.nn.functional.pad(value, (0, ids.shape[1] - value.shape[1]))
                for name, value in extra.items()
            }
            with torch.no_grad():
                logits = vlm.model(
                    input_ids=ids, attention_mask=torch.ones_like(ids), **padded,
                    **entry.prompt.tensors,
                ).logits[0]  # fmt: skip
            table = logits[entry.prompt.num_tokens - 1 : -1].log_softmax(-1)
            expected = sum(table[i, token].item() for i, token in enumerate(completion))
            assert logps[b, n].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("build", [qwen, llava_next])
def test_sampled_logprobs_equal_teacher_forcing(build) -> None:  # type: ignore[no-untyped-def]
    vlm, prompt, _ = build()
    (row,) = sample_lists(
        vlm, [prompt], num_samples=5, temperature=1.0, max_new_tokens=6, seeds=[0]
    )
    entry = CompletionList(prompt, [c.token_ids for c in row])
    with torch.no_grad():
        expected = completion_logps(vlm.model, pack_lists(vlm, [entry]))[0]
    sampled = torch.tensor([c.sampler_logprob for c in row])
    torch.testing.assert_close(sampled, expected, atol=1e-4, rtol=0)
