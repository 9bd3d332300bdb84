"""Tiny randomly initialised models of six families, in the hub's directory layout.

Most tests run over these; tests/tiny_all.py has one of each family.
"""

from pathlib import Path
from typing import Any

import torch
from tiny_models import CHAT_TEMPLATE, save_tiny_llava, tiny_tokenizer
from tokenizers import processors as post_processors
from transformers import (
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    SiglipVisionConfig,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from perpo_pipeline.vlm.families import FAMILIES, Family
from perpo_pipeline.vlm.processors import without_video

MODEL_TYPES = (
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_5_vl",
    "qwen3_vl",
    "internvl",
)
WEIGHT_STD = 0.12  # as in tiny_models: six times the usual, so that logits differ visibly
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
# Qwen's text configs on the hub have a window size, with the window off.
QWEN_TEXT = TEXT | {"use_sliding_window": False, "tie_word_embeddings": False}

ONEVISION_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% endif %}"
    "{% endfor %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ '\n' + part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def without(model_type: str) -> dict[str, Family]:
    """The records but one, to stand for `families.FAMILIES`: taken out of it and put back, a record
    would be the last one for the tests that follow."""
    return {name: record for name, record in FAMILIES.items() if name != model_type}


def chatml_template(image: str, system: str = "") -> str:
    """Turns as in Qwen and InternVL; `image` stands for an image, `system` is the first turn."""
    first = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return (
        f"{{{{ {first!r} }}}}"
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{{{{ {image!r} }}}}"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def save_tiny_family(model_type: str, directory: Path, seed: int = 0) -> Path:
    """Write a complete tiny model of `model_type` (one of MODEL_TYPES) and return `directory`."""
    if model_type == "llava":
        return save_tiny_llava(directory, seed=seed)
    build = {
        "llava_next": _llava_next,
        "llava_onevision": _llava_onevision,
        "qwen2_5_vl": _qwen2_5_vl,
        "qwen3_vl": _qwen3_vl,
        "internvl": _internvl,
    }[model_type]
    torch.manual_seed(seed)
    model, processor = build()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Matrices, and the vectors outside norms: new-line features, class tokens.
            if parameter.ndim > 1 or "newline" in name or "class_embedding" in name:
                parameter.normal_(std=WEIGHT_STD)
    if model_type != "llava_next":  # as in Qwen: the padding token also ends an answer
        ends = [processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id]
        model.generation_config.eos_token_id = ends
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def chatml_tokenizer(*special: str, **named: str) -> PreTrainedTokenizerFast:
    """Like Qwen's: no begin token, `<|im_end|>` ends a turn, `special` ids after the words."""
    backend = tiny_tokenizer().backend_tokenizer
    backend.post_processor = post_processors.ByteLevel(trim_offsets=False)
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=named,
    )


def text_ids(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _llava_next() -> tuple[Any, Any]:
    """Tiles of 3 x 3 features: the whole image and up to 2 x 2 or 1 x 3 tiles."""
    tokenizer = tiny_tokenizer()
    pinpoints = [[24, 48], [48, 24], [48, 48], [72, 24], [24, 72]]
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**TOWER, image_size=24, patch_size=8, projection_dim=32),
        text_config=LlamaConfig(**TEXT, **ids),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=9,
    )
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 24},
            crop_size={"height": 24, "width": 24},
            image_grid_pinpoints=pinpoints,
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return LlavaNextForConditionalGeneration(config), processor


def _llava_onevision() -> tuple[Any, Any]:
    """Like LLaVA-NeXT; features of more than two tiles are scaled down (`anyres_max_2`)."""
    tokenizer = chatml_tokenizer("<video>")
    pinpoints = [[24 * rows, 24 * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)]
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            **TOWER, image_size=24, patch_size=8, vision_use_head=False
        ),
        text_config=Qwen2Config(**QWEN_TEXT, **text_ids(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_2",
    )
    processor = without_video(LlavaOnevisionProcessor)(
        image_processor=LlavaOnevisionImageProcessorPil(
            size={"height": 24, "width": 24}, image_grid_pinpoints=pinpoints
        ),
        tokenizer=tokenizer,
        num_image_tokens=9,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
        chat_template=ONEVISION_TEMPLATE,
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def qwen_vl_config(tokenizer: Any, sections: list[int], **rope: Any) -> dict[str, Any]:
    """What all Qwen-VL configs share: three rotary axes over 16-wide heads, marker tokens."""
    rope_parameters = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections, **rope}
    markers = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{word}|>")
        for name, word in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    text = QWEN_TEXT | text_ids(tokenizer) | {"rope_parameters": rope_parameters}
    return markers | {"text_config": text, "tie_word_embeddings": False}


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    return chatml_tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def _qwen2_5_vl() -> tuple[Any, Any]:
    """2 to 12 image tokens of 28 px; windows of 2 x 2 tokens in the first of two blocks."""
    tokenizer = qwen_tokenizer()
    config = Qwen2_5_VLConfig(
        **qwen_vl_config(tokenizer, [2, 3, 3]),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
    )
    processor = without_video(Qwen2_5_VLProcessor)(
        image_processor=Qwen2VLImageProcessorPil(
            size={"shortest_edge": 2 * 28**2, "longest_edge": 12 * 28**2}
        ),
        tokenizer=tokenizer,
        chat_template=chatml_template(QWEN_IMAGE, system="You are a helpful assistant."),
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl_processor(tokenizer: Any) -> Any:
    """Prepares images of 2 to 12 tokens, for Qwen3-VL and its relatives."""
    return without_video(Qwen3VLProcessor)(
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=16,
            size={"shortest_edge": 2 * 32**2, "longest_edge": 12 * 32**2},
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
        ),
        tokenizer=tokenizer,
        chat_template=chatml_template(QWEN_IMAGE),
    )


def _qwen3_vl() -> tuple[Any, Any]:
    """2 to 12 image tokens of 32 px; two deepstack levels feed the first two decoder layers."""
    tokenizer = qwen_tokenizer()
    config = Qwen3VLConfig(
        **qwen_vl_config(tokenizer, [4, 2, 2], mrope_interleaved=True),
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
    config.text_config.head_dim = 16
    return Qwen3VLForConditionalGeneration(config), qwen3_vl_processor(tokenizer)


def _internvl() -> tuple[Any, Any]:
    """4 tokens per tile of 32 px; up to four tiles and the whole image."""
    tokenizer = chatml_tokenizer(
        "<img>",
        "</img>",
        "<IMG_CONTEXT>",
        "<video>",
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = InternVLConfig(
        vision_config=TOWER | {"image_size": [32, 32], "patch_size": [8, 8]},
        text_config=Qwen2Config(**QWEN_TEXT, **text_ids(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    processor = without_video(InternVLProcessor)(
        image_processor=GotOcr2ImageProcessorPil(
            size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=chatml_template("<IMG_CONTEXT>\n"),
    )
    return InternVLForConditionalGeneration(config), processor
