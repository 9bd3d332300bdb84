"""Tiny models that vLLM accepts: head sizes of its CPU kernels, and the hub's file layout."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_all import SAVED
from tiny_families import WEIGHT_STD, save_tiny_family

FAMILIES = ("llava", "llava_next", "llava_onevision", "qwen2_5_vl", "qwen3_vl")
FURTHER = ("qwen2_vl", "qwen3_vl_moe", "internvl")  # the same engine, with fewer tests
HIDDEN, HEADS = 128, 4  # heads of 32, the narrowest that vLLM's attention on the CPU supports
VIDEO_PROCESSORS = {
    "llava_onevision": "LlavaOnevisionVideoProcessor",
    "qwen2_vl": "Qwen2VLVideoProcessor",
    "qwen2_5_vl": "Qwen2VLVideoProcessor",
    "qwen3_vl": "Qwen3VLVideoProcessor",
    "qwen3_vl_moe": "Qwen3VLVideoProcessor",
    "qwen3_5": "Qwen3VLVideoProcessor",
    "internvl": "InternVLVideoProcessor",
}


def save_hub_model(model_type: str, directory: Path, seed: int = 0) -> Path:
    """Write a tiny model of `model_type` and return `directory`.

    Of FAMILIES and FURTHER, or `qwen3_5` or `gemma3`, of which vLLM's CPU build cannot do all.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

    SAVED.get(model_type, save_tiny_family)(model_type, directory)
    config = AutoConfig.from_pretrained(directory)
    _widen(config)
    if model_type == "llava_onevision":
        _cut_as_the_hub_does(config, directory / "processor_config.json")
    if model_type == "gemma3":
        _name_new_lines(config, directory)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or "newline" in name or "class_embedding" in name:
                parameter.normal_(std=0.5 if "conv1d" in name else WEIGHT_STD)
            elif "A_log" in name:  # states that last
                parameter.uniform_(-3, 0)
    model.generation_config = GenerationConfig.from_pretrained(directory)
    model.save_pretrained(directory)
    if model_type == "qwen3_vl_moe":
        _turn_experts_as_the_hub_does(directory / "model.safetensors")
    elif model_type != "internvl":
        _name_tower_as_the_hub_does(directory / "model.safetensors")
    if video_processor := VIDEO_PROCESSORS.get(model_type):
        (directory / "video_preprocessor_config.json").write_text(
            json.dumps({"video_processor_type": video_processor})
        )
    return directory


def _widen(config: Any) -> None:
    text = config.text_config
    text.hidden_size, text.num_attention_heads, text.head_dim = HIDDEN, HEADS, HIDDEN // HEADS
    rope = text.rope_parameters
    if sections := rope.get("mrope_section"):
        rope["mrope_section"] = [2 * width for width in sections]
    if hasattr(config.vision_config, "out_hidden_size"):
        config.vision_config.out_hidden_size = HIDDEN
    if config.model_type == "qwen2_vl":  # its tower's own width is embed_dim
        config.vision_config.hidden_size = HIDDEN
    if config.model_type == "qwen3_5":  # heads of 32, the narrowest of its kernel on the CPU
        text.linear_key_head_dim = text.linear_value_head_dim = 128
    if config.model_type == "qwen3_vl_moe":
        text.norm_topk_prob = True  # as transformers computes it; only the hub's configs say so
        text.moe_intermediate_size = 96  # else a matrix is square, and nobody knows how it stands


def _cut_as_the_hub_does(config: Any, file: Path) -> None:
    """Keep the features of up to nine tiles, as every checkpoint on the hub: vLLM supports only
    this number. The grids exceed nine tiles, so that features are also scaled down."""
    pinpoints = [[24 * rows, 24 * columns] for rows in range(1, 5) for columns in range(1, 5)]
    config.vision_aspect_ratio, config.image_grid_pinpoints = "anyres_max_9", pinpoints
    processor = json.loads(file.read_text())
    processor["vision_aspect_ratio"] = "anyres_max_9"
    processor["image_processor"]["image_grid_pinpoints"] = pinpoints
    file.write_text(json.dumps(processor))


def _name_new_lines(config: Any, directory: Path) -> None:
    """Give one to four new lines tokens of their own, as Gemma 3's tokenizer has them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens(["\n" * number for number in range(1, 5)])
    tokenizer.save_pretrained(directory)
    config.text_config.vocab_size = len(tokenizer)


def _name_tower_as_the_hub_does(file: Path) -> None:
    """Add the `vision_model.` of CLIP and SigLIP, which a model that was never loaded lacks."""
    old, new = "vision_tower.", "vision_tower.vision_model."
    weights = {
        (new + name.removeprefix(old) if name.startswith(old) else name): value
        for name, value in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})


def _turn_experts_as_the_hub_does(file: Path) -> None:
    """Transpose the experts' matrices, which transformers does only to those that it has loaded."""
    weights = {
        name: value.transpose(1, 2).contiguous() if ".experts." in name else value
        for name, value in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})
