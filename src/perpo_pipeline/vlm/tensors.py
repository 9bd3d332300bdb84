"""Pixel tensors and positions of encoded prompts in the form that a model's forward takes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from perpo_pipeline.vlm.models import EncodedPrompt


def stack_image_tensors(prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
    """Join the prompts' pixel tensors along the image axis; fewer tiles are padded with zeros."""
    joined: dict[str, Tensor] = {}
    for name in prompts[0].tensors:
        parts = [prompt.tensors[name] for prompt in prompts]
        if parts[0].ndim > 2 and len({p.shape[1] for p in parts}) > 1:
            most = max(p.shape[1] for p in parts)
            parts = [F.pad(p, (0, 0) * (p.ndim - 2) + (0, most - p.shape[1])) for p in parts]
        joined[name] = torch.cat(parts)
    return joined


def cast_tensors(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Cast pixels to `dtype`; sizes and grids stay integers."""
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}


def squeeze_positions(positions: Tensor) -> Tensor:
    """(A, B, T) -> (B, T) for a single axis, which is what the model's forward takes."""
    return positions[0] if positions.shape[0] == 1 else positions
