"""Put a trained PEFT adapter on the base model it belongs to, and on no other."""

import contextlib
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perpo_pipeline.errors import ArtifactError, first_line

if TYPE_CHECKING:
    from perpo_pipeline.models import Vlm

ADAPTER_RECORD = "perpo_adapter.json"  # written beside the adapter: {"base_identity": ...}


def attach_adapter(vlm: "Vlm", adapter: Path) -> "Vlm":
    """Put a PEFT adapter on the model after checking that it was trained on this very base."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    _check_adapter_files(vlm, adapter)
    weights = adapter / "adapter_model.safetensors"
    try:
        with safe_open(weights, framework="pt") as stored:
            saved = set(stored.keys())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of missing keys: an error below
            model = PeftModel.from_pretrained(vlm.model, adapter, is_trainable=False)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ArtifactError(
            f"The adapter does not fit the model: {first_line(error)}", where=str(adapter)
        ) from error
    expected = set(get_peft_model_state_dict(model))
    if saved != expected:
        odd = sorted(saved ^ expected)
        raise ArtifactError(
            f"The adapter's weights are not those its config describes: {len(odd)} differ "
            f"(first: {odd[0]}).",
            where=str(weights),
        )
    vlm.model, vlm.adapter = model.eval(), adapter
    return vlm


def _check_adapter_files(vlm: "Vlm", adapter: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors", ADAPTER_RECORD):
        if not (adapter / name).is_file():
            raise ArtifactError(
                f"The adapter has no {name}.",
                where=str(adapter),
                fix="give a directory that `perpo train` wrote",
            )
    record: Any = None
    with contextlib.suppress(ValueError):
        record = json.loads((adapter / ADAPTER_RECORD).read_text(encoding="utf-8"))
    base = record.get("base_identity") if isinstance(record, dict) else None
    if base != vlm.identity:
        raise ArtifactError(
            f"The adapter was trained on another base model: {base} instead of {vlm.identity}.",
            where=str(adapter),
            fix="load it with the model it was trained on, or train it anew on this one",
        )
