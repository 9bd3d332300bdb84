"""Tiny random models of further families: windows, softcap, sinks, experts.

Each has the family's own config, model and processor classes; tests/tiny_by_hand.py has those whose
processor needs torchvision. Windows are shorter than every prompt, or (WIDE) reach into its middle.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_families import (
    QWEN_IMAGE,
    TEXT,
    TOWER,
    WEIGHT_STD,
    chatml_template,
    chatml_tokenizer,
    qwen3_vl_processor,
    qwen_tokenizer,
    qwen_vl_config,
    text_ids,
)
from tiny_models import tiny_llava_config, tiny_processor, tiny_tokenizer
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    AyaVisionProcessor,
    Cohere2Config,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    GptOssConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PreTrainedConfig,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from perpo_pipeline.vlm.processors import without_video

NARROW, WIDE = 7, 45  # tokens: the prompts of the tests have 30 to 80
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]


def save_untried(name: str, directory: Path, seed: int = 0) -> Path:
    """Write the model `name` (one of UNTRIED) in the hub's layout and return `directory`."""
    torch.manual_seed(seed)
    model, processor = UNTRIED[name]()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim > 1 or "sinks" in parameter_name:
                parameter.normal_(std=WEIGHT_STD)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def _gemma3(window: int) -> tuple[Any, Any]:
    """16 tokens of an image, which see each other."""
    tokenizer = chatml_tokenizer(
        "<boi>", "<eoi>", "<soft>", boi_token="<boi>", eoi_token="<eoi>", image_token="<soft>"
    )
    config = Gemma3Config(
        text_config=TEXT
        | text_ids(tokenizer)
        | {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": window,
            "layer_types": MIXED,
        },
        vision_config=TOWER | {"image_size": 32, "patch_size": 8, "vision_use_head": False},
        mm_tokens_per_image=16,
        image_token_id=tokenizer.convert_tokens_to_ids("<soft>"),
        boi_token_id=tokenizer.convert_tokens_to_ids("<boi>"),
        eoi_token_id=tokenizer.convert_tokens_to_ids("<eoi>"),
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer=tokenizer,
        image_seq_length=16,
        chat_template=chatml_template("<boi>"),
    )
    return Gemma3ForConditionalGeneration(config), processor


def _qwen2_vl(*, window: bool) -> tuple[Any, Any]:
    """Three axes of positions; with `window`, which no checkpoint has, in the last layer."""
    tokenizer = qwen_tokenizer()
    shared = qwen_vl_config(tokenizer, [2, 3, 3])
    if window:
        shared["text_config"] |= {
            "use_sliding_window": True,
            "sliding_window": NARROW,
            "layer_types": ["full_attention", "full_attention", "sliding_attention"],
        }
    tower = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
    processor = without_video(Qwen2VLProcessor)(
        image_processor=Qwen2VLImageProcessorPil(
            size={"shortest_edge": 2 * 28**2, "longest_edge": 12 * 28**2}
        ),
        tokenizer=tokenizer,
        chat_template=chatml_template(QWEN_IMAGE),
    )
    config = Qwen2VLConfig(**shared, vision_config=tower)
    return Qwen2VLForConditionalGeneration(config), processor


def _qwen3_vl_moe() -> tuple[Any, Any]:
    """Four experts in each layer, of which a token has two; deepstack as in Qwen3-VL."""
    tokenizer = qwen_tokenizer()
    shared = qwen_vl_config(tokenizer, [4, 2, 2], mrope_interleaved=True)
    shared["text_config"] |= {
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
    }
    config = Qwen3VLMoeConfig(
        **shared,
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
    )
    return Qwen3VLMoeForConditionalGeneration(config), qwen3_vl_processor(tokenizer)


def _aya_vision() -> tuple[Any, Any]:
    """Cohere 2: windows with rotary positions, full layers without any positions."""
    marks = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "TILE", "TILE_GLOBAL")
    tokenizer = chatml_tokenizer(*marks)
    config = AyaVisionConfig(
        vision_config=TOWER
        | {
            "image_size": 32,
            "patch_size": 8,
            "vision_use_head": False,
            "model_type": "siglip_vision_model",
        },
        text_config=Cohere2Config(
            **TEXT, **text_ids(tokenizer), head_dim=16, sliding_window=NARROW, layer_types=MIXED
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
    )
    processor = AyaVisionProcessor(
        image_processor=GotOcr2ImageProcessorPil(
            size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer=tokenizer,
        patch_size=8,
        img_size=32,
        downsample_factor=2,
        chat_template=chatml_template("<image>"),
    )
    return AyaVisionForConditionalGeneration(config), processor


def _llava_with(text: Callable[..., PreTrainedConfig], **settings: Any) -> tuple[Any, Any]:
    """LLaVA's tower and projector before another text model."""
    tokenizer = tiny_tokenizer()
    config: LlavaConfig = tiny_llava_config(len(tokenizer))
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config.text_config = text(**TEXT, **ids, head_dim=16, **settings)
    return LlavaForConditionalGeneration(config), tiny_processor(tokenizer)


UNTRIED: dict[str, Callable[[], tuple[Any, Any]]] = {
    "gemma3": lambda: _gemma3(NARROW),
    "gemma3-wide": lambda: _gemma3(WIDE),
    "qwen2_vl": lambda: _qwen2_vl(window=False),
    "qwen2_vl-window": lambda: _qwen2_vl(window=True),
    "qwen3_vl_moe": _qwen3_vl_moe,
    "aya_vision": _aya_vision,
    "mistral": lambda: _llava_with(MistralConfig, sliding_window=NARROW),
    "gemma2": lambda: _llava_with(
        Gemma2Config,
        sliding_window=NARROW,
        layer_types=MIXED,
        attn_logit_softcapping=0.5,
        query_pre_attn_scalar=16,
    ),
    "gpt_oss": lambda: _llava_with(
        GptOssConfig,
        sliding_window=NARROW,
        layer_types=MIXED,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
}
