"""Tiny random models of families whose processors need torchvision, in some version of
transformers: their prompts and pixels are made by hand."""

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
    DeepseekOcr2Config,
    DeepseekOcr2ForConditionalGeneration,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    GemmaConfig,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Glm46VConfig,
    Glm46VForConditionalGeneration,
    GlmOcrConfig,
    GlmOcrForConditionalGeneration,
    GotOcr2Config,
    GotOcr2ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LightOnOcrConfig,
    LightOnOcrForConditionalGeneration,
    Llama4Config,
    Llama4ForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    PaddleOCRVLConfig,
    PaddleOCRVLForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from perpo_pipeline.vlm.families import family_of_type
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm
from perpo_pipeline.vlm.prompts import prompt_positions

VOCABULARY, PAD, END, IMAGE, NARROW = 300, 0, 2, 3, 7
TEXT_IDS = {
    "vocab_size": VOCABULARY,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": PAD,
}
EXPERTS = {
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "partial_rotary_factor": 1.0,
}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
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
            pad_token_id=PAD,
            added_tokens_decoder={},
            batch_decode=lambda ids, **how: [str(y) for y in ids],
        ),
        family=family_of_type(model.config.model_type),
        device=torch.device("cpu"),
        dtype=torch.float32,
        eos_token_ids=(END,),
        image_token_ids=(IMAGE,),
        identity="random",
    )


def prompts_by_hand(name: str, vlm: Vlm) -> list[EncodedPrompt]:
    """Three prompts of unlike lengths: text, an image, text; the last one has two images."""
    return [
        prompt_by_hand(name, vlm, seed, words, *more)
        for seed, words, *more in ((0, 9), (1, 30), (2, 5, 0))
    ]


def prompt_by_hand(name: str, vlm: Vlm, seed: int, words: int, *more: int) -> EncodedPrompt:
    """Four tokens of text, the image with this seed (0 to 2), and `words` tokens of text.

    `more` are the seeds of further images, each after three tokens of text.
    """
    pixels = (BY_HAND | ALONE)[name][1]
    generator = torch.Generator().manual_seed(seed)
    tensors, image_tokens = pixels(seed)
    before, after = (
        torch.randint(10, VOCABULARY, (count,), generator=generator) for count in (4, words)
    )
    parts = [before, torch.full((image_tokens,), IMAGE)]
    for one in more:
        further, count = pixels(one)
        tensors = _joined(tensors, further, axis=int(pixels is _nested_tiles))
        parts += [torch.arange(10, 13), torch.full((count,), IMAGE)]
    ids = torch.cat([*parts, after])
    types = torch.zeros_like(ids) if pixels is _tile else (ids == IMAGE).long()
    positions = prompt_positions(vlm, ids[None], types[None], tensors)
    return EncodedPrompt(
        input_ids=ids,
        tensors=tensors,
        positions=positions,
        next_position=int(positions.max()) + 1,
        image_size=(32, 32),
        padded_size=(32, 32),
        resized=None,
        token_types=types,
    )


def _joined(first: dict[str, Tensor], second: dict[str, Tensor], axis: int) -> dict[str, Tensor]:
    """The tensors of two images, the smaller one filled with zeros, as processors do it."""
    found = {}
    for name, one in first.items():
        shapes = [one.shape, second[name].shape]
        most = [n if i == axis else max(s[i] for s in shapes) for i, n in enumerate(one.shape)]
        parts = []
        for part in (one, second[name]):
            ends = [
                (0, m - n) if i != axis else (0, 0)
                for i, (m, n) in enumerate(zip(most, part.shape, strict=True))
            ]
            parts.append(torch.nn.functional.pad(part, [n for end in reversed(ends) for n in end]))
        found[name] = torch.cat(parts, axis)
    return found


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


def _glm(config: Callable[..., Any], model: Callable[..., Any], **text: Any) -> Any:
    """Three axes of positions; gate and up projection are one matrix."""
    return model(
        config(
            text_config=TEXT | TEXT_IDS | {"head_dim": 16, "rope_parameters": ROPE} | text,
            vision_config={
                "depth": 2,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_heads": 2,
                "out_hidden_size": 64,
                "image_size": 56,
            },
            image_token_id=IMAGE,
            video_token_id=4,
            image_start_token_id=5,
            image_end_token_id=6,
        )
    )


def _grid(seed: int) -> tuple[dict[str, Tensor], int]:
    """Patches of 14 x 14 pixels, two frames each; four of them are a token."""
    height, width = ((4, 2), (2, 6), (4, 4))[seed]
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(height * width, 3 * 2 * 14 * 14, generator=generator)
    grid = torch.tensor([[1, height, width]])
    return {"pixel_values": pixels, "image_grid_thw": grid}, height * width // 4


def _paddleocr_vl() -> Any:
    return PaddleOCRVLForConditionalGeneration(
        PaddleOCRVLConfig(
            text_config=TEXT | TEXT_IDS | {"head_dim": 16, "rope_parameters": ROPE},
            vision_config=TOWER | {"image_size": 56, "patch_size": 14},
            image_token_id=IMAGE,
            video_token_id=4,
            vision_start_token_id=5,
            vision_end_token_id=6,
        )
    )


def _grid_of_images(seed: int) -> tuple[dict[str, Tensor], int]:
    """As `_grid`, one frame, with the patches as little images."""
    tensors, tokens = _grid(seed)
    patches = tensors["pixel_values"][:, : 3 * 14 * 14].reshape(-1, 3, 14, 14)
    return tensors | {"pixel_values": patches}, tokens


def _lighton_ocr() -> Any:
    """Pixtral's tower before a Qwen 3."""
    text = TEXT | TEXT_IDS | {"head_dim": 16, "model_type": "qwen3"}
    tower = TOWER | {"image_size": 64, "patch_size": 8, "model_type": "pixtral"}
    return LightOnOcrForConditionalGeneration(
        LightOnOcrConfig(
            vision_config=tower, text_config=text, image_token_id=IMAGE, spatial_merge_size=2
        )
    )


def _ovis2() -> Any:
    """An image's tokens are mixtures of rows of an embedding table."""
    tower = TOWER | {"image_size": 32, "patch_size": 8, "vocab_size": 64}
    return Ovis2ForConditionalGeneration(
        Ovis2Config(
            vision_config=tower | {"hidden_stride": 2, "num_visual_indicator_tokens": 5},
            text_config=TEXT | TEXT_IDS | {"model_type": "qwen2"},
            image_token_id=IMAGE,
            visual_indicator_token_ids=[4, 5, 6, 7, 8],
            vocab_size=VOCABULARY,
            hidden_size=64,
        )
    )


def _got_ocr2() -> Any:
    tower = {
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 128,
        "patch_size": 8,
        "window_size": 4,
        "global_attn_indexes": [1],
        "mlp_dim": 64,
    }
    return GotOcr2ForConditionalGeneration(
        GotOcr2Config(
            vision_config=tower,
            text_config=TEXT | TEXT_IDS | {"model_type": "qwen2"},
            image_token_index=IMAGE,
            image_seq_length=16,
        )
    )


def _page(seed: int) -> tuple[dict[str, Tensor], int]:
    generator = torch.Generator().manual_seed(seed)
    return {"pixel_values": torch.randn(1, 3, 128, 128, generator=generator)}, 16


def _deepseek_ocr2() -> Any:
    """144 tokens for each tile and for the whole image, by learned queries; experts."""
    sam = {
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "window_size": 2,
        "global_attn_indexes": [1],
        "mlp_dim": 64,
        "downsample_channels": [16, 32],
    }
    encoder = TOWER | {"num_key_value_heads": 2}
    experts = {
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
    }
    return DeepseekOcr2ForConditionalGeneration(
        DeepseekOcr2Config(
            text_config=TEXT | TEXT_IDS | {"max_position_embeddings": 1024} | experts,
            vision_config={"sam_config": sam, "encoder_config": encoder},
            image_token_id=IMAGE,
        )
    )


def _tiles_of_large_images(seed: int) -> tuple[dict[str, Tensor], int]:
    """One tile, none or two; without a tile a prompt lacks the tensor."""
    generator, count = torch.Generator().manual_seed(seed), (1, 0, 2)[seed]
    whole, tiles = (torch.randn(n, 3, 64, 64, generator=generator) for n in (1, count))
    tensors = {"pixel_values": whole, "num_local_patches": torch.tensor([count])}
    return tensors | ({"pixel_values_local": tiles} if count else {}), 144 * (count + 1) + 1


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


def _idefics(config: Callable[..., Any], model: Callable[..., Any]) -> Any:
    return model(
        config(
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
    "glm4v": (lambda: _glm(Glm4vConfig, Glm4vForConditionalGeneration), _grid),
    "glm46v": (lambda: _glm(Glm46VConfig, Glm46VForConditionalGeneration), _grid),
    "glm4v_moe": (
        lambda: _glm(Glm4vMoeConfig, Glm4vMoeForConditionalGeneration, **EXPERTS),
        _grid,
    ),
    "ovis2": (_ovis2, _tile),
    "glm_ocr": (lambda: _glm(GlmOcrConfig, GlmOcrForConditionalGeneration), _grid),
    "paddleocr_vl": (_paddleocr_vl, _grid_of_images),
    "lighton_ocr": (_lighton_ocr, _image_of_any_size),
    "got_ocr2": (_got_ocr2, _page),
    "cohere2_vision": (_cohere2_vision, _tiles),
    "deepseek_ocr2": (_deepseek_ocr2, _tiles_of_large_images),
    "paligemma": (_paligemma, _tile),
    "idefics3": (
        lambda: _idefics(Idefics3Config, Idefics3ForConditionalGeneration),
        _nested_tiles,
    ),
    "smolvlm": (lambda: _idefics(SmolVLMConfig, SmolVLMForConditionalGeneration), _nested_tiles),
}
# Those that share no prefix.
ALONE: dict[str, tuple[Callable[[], Any], Pixels]] = {"llama4": (llama4, _tiles)}
