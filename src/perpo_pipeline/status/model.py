"""Whether an artifact was made with the configured model, without loading or downloading it."""

import os
import re
from pathlib import Path

from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import InputError
from perpo_pipeline.status.expected import Difference
from perpo_pipeline.status.graph import Key
from perpo_pipeline.store.artifacts import Json
from perpo_pipeline.vlm.files import compute_identity, is_path, resolve_model

KEY, REFERENCE_KEY = "model.id", "train.reference_model"
REVISIONS = {KEY: "model.revision", REFERENCE_KEY: "train.reference_revision"}
_COMMIT = re.compile(r"[0-9a-f]{40}")


def model_difference(manifest: Json, model: ModelConfig, cache: Path) -> Difference | None:
    """The model that an artifact was made with, if it is not the configured one.

    A local model is known by its files, whose hashes `cache` keeps; a hub's by its id and commit.
    Where the configured model is not on this machine, its name must do.
    """
    recorded = manifest["settings"].get("model")
    if not isinstance(recorded, str):
        return None
    return _difference(KEY, recorded, manifest.get("notes", {}).get("model_id"), model, cache)


def reference_difference(
    key: Key, manifest: Json, config: RunConfig, cache: Path
) -> Difference | None:
    """As `model_difference`, of the model that gave an adapter its reference log-probabilities."""
    settings = config.train.variants().get(key[1]) if key[0] == "adapter" else None
    if settings is None:
        return None
    recorded = manifest["settings"].get("reference_model")
    name = manifest.get("notes", {}).get("reference_model_id")
    model = settings.reference_of(config.model)
    if recorded is None:
        if model is None:
            return None
        # The trained model may be named as its own reference, which changes nothing.
        trained = str(manifest["settings"].get("model", ""))
        found = _difference(REFERENCE_KEY, trained, config.model.id, model, cache)
        return found and Difference(REFERENCE_KEY, None, model.id)
    if model is None:
        return Difference(REFERENCE_KEY, name or recorded, None)
    return _difference(REFERENCE_KEY, recorded, name, model, cache)


def _difference(
    key: str, recorded: str, name: str | None, model: ModelConfig, cache: Path
) -> Difference | None:
    """Whether `model` is another one than the recorded identity says; `name` is its recorded id."""
    if is_on_hub(model.id):
        return _hub_difference(key, recorded, name, model)
    try:
        here = resolve_model(model.id, trust_remote_code=model.trust_remote_code)
        now = compute_identity(here, cache)
    except (InputError, OSError):
        is_known = name in (None, model.id)
        return None if is_known else Difference(key, name, model.id)
    if now == recorded:
        return None
    if name == model.id:
        return Difference(key, recorded, now, f"other files of the model {model.id}")
    return Difference(key, name or recorded, model.id)


def is_on_hub(model_id: str) -> bool:
    """Whether `resolve_model` would look for the model on the hub."""
    is_folder = is_path(model_id) or Path(model_id).expanduser().is_dir()
    return model_id != "testbed" and not is_folder


def _hub_difference(
    key: str, recorded: str, name: str | None, model: ModelConfig
) -> Difference | None:
    at, _, commit = recorded.rpartition("@")
    if at != model.id:
        return Difference(key, name or recorded, model.id)
    wanted = _commit_of(model)
    if wanted is None or wanted == commit:
        return None
    return Difference(REVISIONS[key], commit[:12], f"{model.revision or 'main'} ({wanted[:12]})")


def _commit_of(model: ModelConfig) -> str | None:
    """The commit that the revision names, as far as this machine's cache of the hub knows."""
    revision = model.revision or "main"
    if _COMMIT.fullmatch(revision):
        return revision
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    file = cache / f"models--{model.id.replace('/', '--')}" / "refs" / revision
    try:
        return file.read_text().strip() or None
    except OSError:
        return None
