"""What two families want for each token beside its id; their processors know the prompt alone.

Llama 3.2 Vision takes a mask of the images that each token sees: an answer's tokens see what the
prompt's last one sees, as in transformers' `generate`. ERNIE-4.5-VL takes types by which its
experts are chosen. They follow from the ids, by its processor's rule, so its model computes them.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perpo_pipeline.errors import InputError

MASK = "cross_attention_mask"  # (1, P, images, tiles)
EXPERT_TYPES = "moe_mm_token_type_ids"
# type -> the tokens of that type, by their names in ERNIE's config; all others are text, 0
_TYPED = {
    1: ("image_token_id", "image_start_token_id", "image_end_token_id"),
    2: ("video_token_id", "video_start_token_id", "video_end_token_id"),
}


def over_row(tensors: dict[str, Tensor], before: int, after: int) -> dict[str, Tensor]:
    """A prompt's tensors for a row with `before` tokens of padding, and `after` behind the prompt.

    Padding before the prompt sees no image.
    """
    if MASK not in tensors:
        return tensors
    mask = tensors[MASK]
    none = torch.zeros_like(mask[:, :1]).expand(-1, before, -1, -1)
    last = mask[:, -1:].expand(-1, after, -1, -1)
    return tensors | {MASK: torch.cat([none, mask, last], dim=1)}


def check_numbers_of_images(prompts: Sequence[dict[str, Tensor]]) -> None:
    """Raise InputError for prompts of a Llama 3.2 Vision with unlike numbers of images.

    Where no image is to be seen, before the first one, its layers see all of the row, also what
    fills it up to the largest number of images.
    """
    numbers = {tensors[MASK].shape[2] for tensors in prompts if MASK in tensors}
    if len(numbers) > 1:
        raise InputError(
            f"this model cannot compute prompts with {' and '.join(map(str, sorted(numbers)))} "
            "images together: the images that fill a row up would change its results",
            fix="use prompts that all have the same number of images, or another model",
        )


def use_expert_types(model: Any) -> None:
    """Let a transformers VLM that takes types for its experts compute them in every forward."""
    core = getattr(model, "model", None)
    if core is not None and EXPERT_TYPES in inspect.signature(core.forward).parameters:
        core.register_forward_pre_hook(_with_types, with_kwargs=True)


def _with_types(
    core: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    ids = kwargs.get("input_ids")
    if ids is None or kwargs.get(EXPERT_TYPES) is not None:
        return None
    types = torch.zeros_like(ids)
    for value, names in _TYPED.items():
        marks = torch.tensor([getattr(core.config, name) for name in names], device=ids.device)
        types.masked_fill_(torch.isin(ids, marks), value)
    return args, kwargs | {EXPERT_TYPES: types}
