"""The lever `compiled-tower`: compiled blocks of a vision tower whose images have one size."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.vlm.image_limits import pixel_limits
from perpo_pipeline.vlm.models import Vlm, base_model


def compile_tower(vlm: Vlm, *, backend: Any = "inductor") -> None:
    """Compile the vision tower's blocks in place, for any number of images or tiles.

    Raises ConfigError for a tower that reads images of any size: each size would be compiled anew.
    """
    inner = base_model(vlm.model)
    if not vlm.family.is_tested or vlm.family.image_limits is pixel_limits:
        raise ConfigError(
            "train.levers has compiled-tower, which needs a tested family whose tower sees images "
            f"of one size; this is a '{vlm.family.name}' model",
            fix="remove compiled-tower from train.levers",
        )
    for block in tower_blocks(inner.model.get_submodule(vlm.family.vision_tower)):
        block.compile(dynamic=True, backend=backend)


def tower_blocks(tower: nn.Module) -> Iterator[nn.Module]:
    """The layers of a vision tower."""
    for module in tower.modules():
        if isinstance(module, GradientCheckpointingLayer):
            yield module
