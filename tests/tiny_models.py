"""Tiny randomly initialised models in the hub's directory layout, for tests."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<image>"]
CORPUS = [
    "USER: Where is the red square? ASSISTANT: [0.12, 0.34, 0.56, 0.78]",
    "leftmost circle left_of blue triangle right_of above below largest smallest green diamond",
    "0 1 2 3 4 5 6 7 8 9 . , [ ]",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def tiny_tokenizer(vocab_size: int = 300) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on three lines; each digit is a token, `<s>` is prepended."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def tiny_llava_config(vocab_size: int, image_size: int = 32, **text: Any) -> LlavaConfig:
    """A CLIP tower (2 x 32) and a Llama (2 x 64) with 8 px patches."""
    text_config: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | text
    vision_config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=8,
        projection_dim=32,
    )
    return LlavaConfig(
        vision_config=vision_config,
        text_config=LlamaConfig(**text_config),
        image_token_index=3,
        image_seq_length=(image_size // 8) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def save_tiny_llava(
    directory: Path, *, seed: int = 0, image_size: int = 32, scale: float = 6.0, **text: Any
) -> Path:
    """Write a complete tiny LLaVA and return `directory`.

    `scale` multiplies the language model's initial standard deviation (0.02): with the default,
    logits differ enough between tokens and prompts for a test to find a mistake.
    """
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    config = tiny_llava_config(len(tokenizer), image_size, **text)
    config.text_config.initializer_range = 0.02 * scale
    model = LlavaForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.lm_head.weight, std=0.02 * scale)
    model.save_pretrained(directory)
    tiny_processor(tokenizer, image_size).save_pretrained(directory)
    return directory


def tiny_processor(tokenizer: PreTrainedTokenizerFast, image_size: int = 32) -> LlavaProcessor:
    """The processor of `tiny_llava_config`'s models."""
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": image_size},
            crop_size={"height": image_size, "width": image_size},
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def noise_image(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """A deterministic RGB image, different for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels, "RGB")
