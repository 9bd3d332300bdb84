"""Tiny random models whose processors need torchvision: prompts and pixels are made by hand."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from tiny_families import TEXT, TOWER, WEIGHT_STD
from tiny_models import noise_image
from torch import Tensor
from transformers import (
    Cohere2Config,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    GemmaConfig,
    Llama4Config,
    Llama4ForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from perpo_pipeline.vlm.families import family_of_type
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm

VOCABULARY, PAD, END, IMAGE, NARROW = 300, 0, 2, 3, 7
TEXT_IDS = {
    "vocab_size": VOCABULARY,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": PAD,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
# (seed, number of text tokens) -> tensors of the image, and its number of tokens
Pixels = Callable[[int], tuple[dict[str, Tensor], int]]


def vlm_by_hand(name: str) -> Vlm:
    """The model `name` of BY_HAND, with the same random weights at every call."""
    torch.manual_seed(0)
    model = (BY_HAND | ALONE)[name][0]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=WEIGHT_STD)
    return Vlm(
        model=model.requires_grad_(False).eval(),
        processor=None,
        tokenizer=SimpleNamespace(
            pad_token_id=PAD, batch_decode=lambda ids, **how: [str(y) for y in ids]
        ),
        family=family_of_type(model.config.model_type),
        device=torch.device("cpu"),
        dtype=torch.float32,
        eos_token_ids=(END,),
        image_token_ids=(IMAGE,),
        identity="random",
    )


def prompts_by_hand(name: str) -> list[EncodedPrompt]:
    """Three prompts of unlike lengths: text, an image, text."""
    pixels = (BY_HAND | ALONE)[name][1]
    return [_prompt(pixels, seed, words) for seed, words in enumerate((9, 30, 5))]


def _prompt(pixels: Pixels, seed: int, words: int) -> EncodedPrompt:
    generator = torch.Generator().manual_seed(seed)
    tensors, image_tokens = pixels(seed)
    before, after = (
        torch.randint(10, VOCABULARY, (count,), generator=generator) for count in (4, words)
    )
    ids = torch.cat([before, torch.full((image_tokens,), IMAGE), after])
    return EncodedPrompt(
        input_ids=ids,
        tensors=tensors,
        positions=torch.arange(len(ids))[None],
        next_position=len(ids),
        image_size=(32, 32),
        padded_size=(32, 32),
        resized=None,
        token_types=torch.zeros_like(ids) if pixels is _tile else (ids == IMAGE).long(),
    )


def _gemma4(ahead: str | None) -> Any:
    """Heads of two sizes, shared keys and values, embeddings per layer, capped logits."""
    return Gemma4ForConditionalGeneration(
        Gemma4Config(
            text_config=TEXT
            | TEXT_IDS
            | {
                "num_hidden_layers": 4,
                "head_dim": 16,
                "global_head_dim": 32,
                "sliding_window": NARROW,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "num_kv_shared_layers": 2,
                "vocab_size_per_layer_input": VOCABULARY,
                "hidden_size_per_layer_input": 8,
                "final_logit_softcapping": 2.0,
                "use_bidirectional_attention": ahead,
            },
            vision_config=TOWER
            | {
                "num_key_value_heads": 2,
                "head_dim": 16,
                "patch_size": 4,
                "pooling_kernel_size": 3,
                "position_embedding_size": 64,
            },
            image_token_id=IMAGE,
            video_token_id=4,
            audio_token_id=5,
        )
    )


def _gemma4_pixels(seed: int) -> tuple[dict[str, Tensor], int]:
    """By the family's own image processor, whose text part needs torchvision."""
    found = Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70)(
        noise_image(seed, *((48, 40), (90, 40), (64, 64))[seed]), return_tensors="pt"
    )
    names = ("pixel_values", "image_position_ids")
    count = int(found["num_soft_tokens_per_image"][0])
    return {name: torch.as_tensor(found[name]) for name in names}, count


def _mistral3() -> Any:
    """Images of any size, padded to the largest of a batch; all layers have a window."""
    return Mistral3ForConditionalGeneration(
        Mistral3Config(
            vision_config=TOWER | {"image_size": 64, "patch_size": 8, "model_type": "pixtral"},
            text_config=MistralConfig(**TEXT, **TEXT_IDS, head_dim=16, sliding_window=NARROW),
            image_token_index=IMAGE,
            spatial_merge_size=2,
            tie_word_embeddings=False,
        )
    )


def _image_of_any_size(seed: int) -> tuple[dict[str, Tensor], int]:
    """One token for 16 x 16 pixels."""
    height, width = ((48, 32), (32, 64), (64, 48))[seed]
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(1, 3, height, width, generator=generator)
    tensors = {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])}
    return tensors, height * width // 16**2


def _cohere2_vision() -> Any:
    tower = TOWER | {
        "image_size": 32,
        "patch_size": 8,
        "vision_use_head": False,
        "model_type": "siglip_vision_model",
    }
    text = Cohere2Config(**TEXT, **TEXT_IDS, head_dim=16, sliding_window=NARROW, layer_types=MIXED)
    return Cohere2VisionForConditionalGeneration(
        Cohere2VisionConfig(
            vision_config=tower,
            text_config=text,
            image_token_id=IMAGE,
            alignment_intermediate_size=64,
        )
    )


def _tiles(seed: int) -> tuple[dict[str, Tensor], int]:
    """One to three tiles of 4 tokens."""
    generator = torch.Generator().manual_seed(seed)
    return {"pixel_values": torch.randn(seed + 1, 3, 32, 32, generator=generator)}, 4 * (seed + 1)


def _paligemma() -> Any:
    """Every token of the prompt sees the whole prompt."""
    tower = TOWER | {"image_size": 32, "patch_size": 16, "vision_use_head": False}
    return PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(
            vision_config=tower | {"model_type": "siglip_vision_model", "projection_dim": 64},
            text_config=GemmaConfig(**TEXT, **TEXT_IDS, head_dim=16),
            image_token_id=IMAGE,
            projection_dim=64,
        )
    )


def _tile(seed: int) -> tuple[dict[str, Tensor], int]:
    generator = torch.Generator().manual_seed(seed)
    return {"pixel_values": torch.randn(1, 3, 32, 32, generator=generator)}, 4


def llama4(*, tuned: bool = False) -> Any:
    """Chunks with rotary positions, whole layers without; the head is in the language model."""
    return Llama4ForConditionalGeneration(
        Llama4Config(
            text_config=TEXT
            | TEXT_IDS
            | {
                "head_dim": 16,
                "intermediate_size_mlp": 64,
                "num_local_experts": 2,
                "attention_chunk_size": 16,
                "no_rope_layers": [1, 0, 1],
                "attn_temperature_tuning": tuned,
            },
            vision_config=TOWER
            | {
                "image_size": 32,
                "patch_size": 8,
                "intermediate_size": 128,  # four patches, which become one token
                "projector_input_dim": 32,
                "projector_output_dim": 32,
                "vision_output_dim": 32,
            },
            image_token_index=IMAGE,
        )
    )


def _smolvlm() -> Any:
    return SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            vision_config=TOWER | {"image_size": 32, "patch_size": 8},
            text_config=TEXT | TEXT_IDS | {"model_type": "llama"},
            image_token_id=IMAGE,
            scale_factor=2,
            pad_token_id=PAD,
        )
    )


def _nested_tiles(seed: int) -> tuple[dict[str, Tensor], int]:
    """The same, with an axis of images before that of tiles."""
    tensors, tokens = _tiles(seed)
    return {"pixel_values": tensors["pixel_values"][None]}, tokens


BY_HAND: dict[str, tuple[Callable[[], Any], Pixels]] = {
    "gemma4": (lambda: _gemma4("vision"), _gemma4_pixels),
    "gemma4-causal": (lambda: _gemma4(None), _gemma4_pixels),
    "mistral3": (_mistral3, _image_of_any_size),
    "cohere2_vision": (_cohere2_vision, _tiles),
    "paligemma": (_paligemma, _tile),
    "smolvlm": (_smolvlm, _nested_tiles),
}
# Those that share no prefix.
ALONE: dict[str, tuple[Callable[[], Any], Pixels]] = {"llama4": (llama4, _tiles)}
