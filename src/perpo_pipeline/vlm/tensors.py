"""Tensors of prompts and batches: as a model's forward takes them, and all of a batch at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from perpo_pipeline.vlm.models import EncodedPrompt
from perpo_pipeline.vlm.per_token import check_numbers_of_images

T = TypeVar("T")


def stack_image_tensors(prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
    """Join the prompts' pixel tensors along the image axis; fewer tiles, and smaller images where a
    model takes them padded, are filled with zeros. A prompt may lack a tensor: DeepSeek-OCR 2 has
    one for the tiles, into which it cuts large images only.

    Raises InputError as `check_numbers_of_images`.
    """
    check_numbers_of_images([prompt.tensors for prompt in prompts])
    joined: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for prompt in prompts for name in prompt.tensors):
        parts = [prompt.tensors[name] for prompt in prompts if name in prompt.tensors]
        if parts[0].ndim > 2:
            most = [max(sizes) for sizes in zip(*(p.shape[1:] for p in parts), strict=True)]
            parts = [_padded(part, most) for part in parts]
        joined[name] = torch.cat(parts)
    return joined


def _padded(part: Tensor, sizes: Sequence[int]) -> Tensor:
    """Zeros at the end of every axis but the first, up to `sizes`."""
    missing = [size - now for size, now in zip(sizes, part.shape[1:], strict=True)]
    return F.pad(part, [n for m in reversed(missing) for n in (0, m)]) if any(missing) else part


def cast_tensors(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Cast pixels to `dtype`; sizes and grids stay integers."""
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}


def squeeze_positions(positions: Tensor) -> Tensor:
    """(A, B, T) -> (B, T) for a single axis, which is what the model's forward takes."""
    return positions[0] if positions.shape[0] == 1 else positions


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors of a batch, in whatever dataclasses and dicts hold them."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name))
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors_of(inner)


def map_tensors(value: T, function: Callable[[Tensor], Tensor]) -> T:
    """A copy of a batch that has `function(tensor)` in the place of each tensor."""
    found: Any = value
    if isinstance(value, Tensor):
        found = function(value)
    elif isinstance(value, dict):
        found = {name: map_tensors(inner, function) for name, inner in value.items()}
    elif is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)]
        found = replace(value, **{n: map_tensors(getattr(value, n), function) for n in names})
    return cast(T, found)


def move(value: T, device: torch.device | str, non_blocking: bool = False) -> T:
    """A copy of a batch with all its tensors on `device`."""
    return map_tensors(value, lambda tensor: tensor.to(device, non_blocking=non_blocking))
