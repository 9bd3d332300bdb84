"""How one model would be sampled and trained: `perpo doctor --model ID`."""

import re
from collections import Counter

from torch import nn

from perpo_pipeline.train.scope import lora_config
from perpo_pipeline.vlm.families import Family
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import Vlm, base_model


def examine_model(model_id: str, *, dtype: str = "auto", device: str = "auto") -> str:
    """Load a model, and say for each line what a run would do; no artifact is written.

    Raises as `load_vlm` does for a model that cannot be used.
    """
    vlm = load_vlm(resolve_model(model_id), dtype=dtype, device=device)
    family = vlm.family
    boxes = f"{family.box_format}, frame {family.box_frame}"
    shared = "read once for all its answers" if vlm.shares_prefix else "read once for each answer"
    lines = {
        "model": model_id,
        "family": f"{family.name}, {_tests_of(family)}",
        "text layers": str(vlm.layers),
        "a prompt is": f"{shared}: {vlm.way.why}",
        "positions": f"{vlm.position_axes} axes" if vlm.position_axes > 1 else "1 axis",
        "boxes": boxes if family.box_format else "set model.box_format and model.box_frame",
        "adapter": _adapter_targets(vlm),
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())


def _tests_of(family: Family) -> str:
    if family.known and not family.own_processor:
        return "tested with images that were prepared without its own processor"
    return "tested" if family.is_tested else "not among the tested"


def _adapter_targets(vlm: Vlm) -> str:
    """The names of the linear layers that LoRA changes, with their number."""
    pattern = str(lora_config(vlm, rank=1, alpha=1).target_modules)
    found = Counter(
        name.rsplit(".", 1)[-1]
        for name, module in base_model(vlm.model).named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(pattern, name)
    )
    names = ", ".join(f"{name} {count}" for name, count in sorted(found.items()))
    return f"LoRA on {found.total()} linear layers ({names})"
