"""Adapters that change a tiny model visibly."""

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import get_peft_model

from perpo_pipeline.store.writing import Recipe, adopt_files, open_writer
from perpo_pipeline.train.scope import lora_config, unfreeze
from perpo_pipeline.vlm.adapters import save_trained, write_record
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm


def save_adapter(
    model: Path,
    directory: Path,
    scope: Sequence[str],
    *,
    full: bool = False,
    trust_remote_code: bool = False,
) -> Path:
    """Write LoRA of rank 4 on `scope`, or with `full` its whole weights; returns `directory`."""
    resolved = resolve_model(str(model), trust_remote_code=trust_remote_code)
    vlm = load_vlm(resolved, dtype="float32", device="cpu")
    torch.manual_seed(1)
    if full:
        unfreeze(vlm, scope)
        trained = vlm.model
    else:
        trained = get_peft_model(vlm.model, lora_config(vlm, 4, 8, scope))
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    save_trained(trained, directory, {})
    write_record(directory, {"base_identity": vlm.identity})
    return directory


def save_adapter_artifact(
    model: Path,
    root: Path,
    scope: Sequence[str] = ("language_model",),
    *,
    full: bool = False,
    **where_set: bool,
) -> Path:
    """Like `save_adapter`, as an artifact of `perpo train` under `root`, without lineage.

    `where_set` are settings that a manifest records only where they are set.
    """
    settings = {"method": "perpo", "dtype": "float32", "preprocess": "processor", "full": full}
    settings |= where_set
    trusts = where_set.get("trust_remote_code", False)
    notes = {"model_id": str(model), "revision": None, "box_format": "llava", "box_frame": "full"}
    recipe = Recipe("adapter", "perpo", "train", 2, settings, notes=notes)
    with open_writer(root, recipe) as writer:
        staging = writer.path / "staging"
        adopt_files(
            save_adapter(model, staging, scope, full=full, trust_remote_code=trusts), writer
        )
        return writer.finish().path
