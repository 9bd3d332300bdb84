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
    Ernie4_5_VLMoeConfig,
    Ernie4_5_VLMoeForConditionalGeneration,
    Ernie4_5_VLMoeProcessor,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    GptOssConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaProcessor,
    PreTrainedConfig,
    ProcessorMixin,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)
from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import (
    Ernie4_5_VLMoeImageProcessorPil,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from perpo_pipeline.vlm.processors import without_video

NARROW, WIDE = 7, 45  # tokens: the prompts of the tests have 30 to 80
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]


def save_untried(name: str, directory: Path, seed: int = 0) -> Path:
    """Write the model `name` of UNTRIED or ALONE in the hub's layout and return `directory`."""
    torch.manual_seed(seed)
    model, processor = (UNTRIED | ALONE)[name]()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim > 1 or "sinks" in parameter_name:
                parameter.normal_(std=WEIGHT_STD)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(directory)
    # The class's own method saves a font of the video part, which is left out.
    ernie = isinstance(processor, Ernie4_5_VLMoeProcessor)
    (ProcessorMixin if ernie else type(processor)).save_pretrained(processor, directory)
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


def _ernie() -> tuple[Any, Any]:
    """Four experts for text and four for images, whose marks at both ends count as images."""
    names = ("IMAGE_PLACEHOLDER", "IMAGE_START", "IMAGE_END")
    names += ("VIDEO_PLACEHOLDER", "VIDEO_START", "VIDEO_END")
    roles = ("image_token", "image_start_token", "image_end_token")
    roles += ("video_token", "video_start_token", "video_end_token")
    marks = {role: f"<|{name}|>" for role, name in zip(roles, names, strict=True)}
    tokenizer = chatml_tokenizer(*marks.values(), **marks)
    experts = {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
        "moe_intermediate_size": [32, 48],
    }
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}
    config = Ernie4_5_VLMoeConfig(
        text_config=TEXT | text_ids(tokenizer) | experts | {"rope_parameters": rope},
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2},
        **{f"{role}_id": tokenizer.convert_tokens_to_ids(mark) for role, mark in marks.items()},
    )
    processor = without_video(Ernie4_5_VLMoeProcessor)(
        image_processor=Ernie4_5_VLMoeImageProcessorPil(
            size={"shortest_edge": 2 * 28**2, "longest_edge": 12 * 28**2}
        ),
        tokenizer=tokenizer,
        chat_template=chatml_template("<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"),
    )
    return Ernie4_5_VLMoeForConditionalGeneration(config), processor


def _mllama() -> tuple[Any, Any]:
    """Llama 3.2 Vision: two layers of four look at up to four tiles, with gates that are open."""
    tokenizer = chatml_tokenizer("<|python_tag|>", "<|image|>", image_token="<|image|>")
    tokenizer.bos_token = "<s>"
    tower = {
        "hidden_size": 32,
        "attention_heads": 2,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "intermediate_size": 64,
        "vision_output_dim": 64,
        "image_size": 32,
        "patch_size": 8,
        "intermediate_layers_indices": [0],
    }
    ids = text_ids(tokenizer) | {"vocab_size": len(tokenizer) - 1, "bos_token_id": 1}
    layers = {"num_hidden_layers": 4, "cross_attention_layers": [1, 3]}
    config = MllamaConfig(
        text_config=TEXT | ids | layers,
        vision_config=tower,
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    model = MllamaForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name and parameter.ndim == 1:
                parameter.fill_(0.7)
    processor = MllamaProcessor(
        image_processor=MllamaImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer=tokenizer,
        chat_template=chatml_template("<|image|>"),
    )
    return model, processor


def _llava_with(text: Callable[..., PreTrainedConfig], **settings: Any) -> tuple[Any, Any]:
    """LLaVA's tower and projector before another text model."""
    tokenizer = tiny_tokenizer()
    config: LlavaConfig = tiny_llava_config(len(tokenizer))
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config.text_config = text(**TEXT, **ids, head_dim=16, **settings)
    return LlavaForConditionalGeneration(config), tiny_processor(tokenizer)


# Those that share no prefix.
ALONE = {"mllama": _mllama}
UNTRIED: dict[str, Callable[[], tuple[Any, Any]]] = {
    "gemma3": lambda: _gemma3(NARROW),
    "gemma3-wide": lambda: _gemma3(WIDE),
    "qwen2_vl": lambda: _qwen2_vl(window=False),
    "qwen2_vl-window": lambda: _qwen2_vl(window=True),
    "qwen3_vl_moe": _qwen3_vl_moe,
    "aya_vision": _aya_vision,
    "ernie4_5_vl_moe": _ernie,
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
