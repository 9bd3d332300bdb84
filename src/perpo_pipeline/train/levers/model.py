"""Turn on the levers that change the model itself, before its adapter is attached."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch

from perpo_pipeline.config.levers import LEVERS
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.train.levers.flash_parts import use_flash_parts
from perpo_pipeline.train.levers.last_layer import use_last_layer
from perpo_pipeline.train.levers.tower import compile_tower
from perpo_pipeline.train.levers.whole_head import use_whole_head
from perpo_pipeline.vlm.models import base_model, head_size

if TYPE_CHECKING:
    from perpo_pipeline.vlm.models import Vlm

# Flex's kernels try several block sizes; matrix products stay with cuBLAS, which tries none.
AUTOTUNE = {"max_autotune": True, "max_autotune_gemm_backends": "ATEN"}


def use_model_levers(vlm: "Vlm", forward: str, levers: Collection[str]) -> None:
    """Turn on `levers`, whose adapter part is `use_lean_lora`'s.

    Raises ConfigError for a lever that this forward, model or precision cannot use.
    """
    for name in levers:
        if LEVERS[name].packed and forward == "separate":
            raise ConfigError(
                f"train.levers has {name}, which needs a shared prefix; this "
                f"'{vlm.family.name}' model is trained with one row per completion",
                fix=f"remove {name}, or use train.forward: shared-prefix where that is exact",
            )
    inner = base_model(vlm.model)
    if "flash-parts" in levers:
        _check_flash(vlm, inner)
        use_flash_parts(inner)
    if "last-layer" in levers:
        use_last_layer(inner)
    if "whole-head" in levers:
        use_whole_head(inner)
    if "compiled-tower" in levers:
        compile_tower(vlm)


def _check_flash(vlm: "Vlm", inner: Any) -> None:
    size = head_size(inner.config.get_text_config())
    in_fp32 = vlm.device.type == "cuda" and vlm.dtype == torch.float32
    if in_fp32 or size % 8 or size > 256 or not vlm.layers.is_plain:
        why = "needs model.dtype: bfloat16" if in_fp32 else f"has no kernel for heads of {size}"
        if not vlm.layers.is_plain:
            why = f"computes plain attention only; this model has {vlm.layers}"
        raise ConfigError(
            f"train.levers has flash-parts, which {why}",
            fix="remove flash-parts from train.levers",
        )
