"""One tiny random model for each record of FAMILIES, with prompts of any length."""

from collections.abc import Callable
from pathlib import Path

from tiny_by_hand import BY_HAND, prompt_by_hand, vlm_by_hand
from tiny_families import save_tiny_family
from tiny_models import noise_image
from tiny_recurrent import lfm2_prompt, lfm2_vlm, save_tiny_qwen3_5
from tiny_untried import save_untried

from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm
from perpo_pipeline.vlm.prompts import encode_prompt

QUESTION = "red square right_of the blue circle " * 40
# Further models in the hub's layout, with the family's own processor: (model_type, folder)
SAVED: dict[str, Callable[[str, Path], Path]] = {
    **dict.fromkeys(
        ("gemma3", "qwen2_vl", "qwen3_vl_moe", "aya_vision", "ernie4_5_vl_moe"),
        save_untried,
    ),
    "qwen3_5": lambda name, folder: save_tiny_qwen3_5(folder),
    "qwen3_5_moe": lambda name, folder: save_tiny_qwen3_5(folder, experts=True),
}


def tiny_vlm(model_type: str, folder: Path) -> Vlm:
    """The model of this family in fp32 on the CPU; saved in `folder` if it has files."""
    if model_type == "lfm2_vl":
        return lfm2_vlm()
    if model_type in BY_HAND:
        return vlm_by_hand(model_type)
    if not any(folder.iterdir()):
        SAVED.get(model_type, save_tiny_family)(model_type, folder)
    return load_vlm(resolve_model(str(folder)), dtype="float32", device="cpu")


def long_prompt(model_type: str, vlm: Vlm, tokens: int) -> EncodedPrompt:
    """An image and text, about `tokens` tokens together."""
    if model_type == "lfm2_vl":
        return lfm2_prompt(tokens - 7)
    if model_type in BY_HAND:
        short = prompt_by_hand(model_type, vlm, 1, 0).num_tokens
        return prompt_by_hand(model_type, vlm, 1, max(0, tokens - short))
    image, words = noise_image(0, 64, 64), QUESTION.split()
    counts = [encode_prompt(vlm, image, " ".join(words[:n])).num_tokens for n in (6, 12)]
    per_word = (counts[1] - counts[0]) / 6
    number = 6 + max(0, round((tokens - counts[0]) / per_word))
    return encode_prompt(vlm, image, " ".join(words[:number]))
