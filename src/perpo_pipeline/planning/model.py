"""The run's model as far as it is known without its weights: shape, processor, identity."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.planning.hardware import published
from perpo_pipeline.run import Run
from perpo_pipeline.train.memory import Shape, shape_of
from perpo_pipeline.vlm.files import file_patterns, has_weights
from perpo_pipeline.vlm.inputs import IDENTITY_CACHE, find_model, find_model_here

if TYPE_CHECKING:
    from perpo_pipeline.vlm.files import ResolvedModel
    from perpo_pipeline.vlm.models import Vlm

HUB_TIMEOUT_S = 5


@dataclass(frozen=True)
class Model:
    """What a plan knows of the model.

    `vlm` has no weights; None if the model's files are not here, then `record` holds published
    figures if there are any. `identity` and `resolved` are None unless the weights are here.
    `download` is what has to be fetched in bytes: 0 for nothing, None if the size is unknown.
    """

    id: str
    half: bool
    vlm: "Vlm | None"
    shape: Shape | None
    record: dict[str, Any]
    resolved: "ResolvedModel | None"
    identity: str | None
    download: int | None
    how: str


def look_at_model(run: Run, *, half: bool) -> Model:
    """Find the run's model; `half`: its weights will have two bytes each, not four.

    Downloads nothing; asks the hub for the size of what is missing, if it can be reached. Raises
    InputError for files that are here and damaged.
    """
    config = run.config.model
    found = find_model_here(config)
    record: dict[str, Any] = published()["models"].get(config.id, {})
    if found is None:
        shape = _published_shape(record, half, config.quantization) if record else None
        size, how = _download_size(config)
        if size is None and record:
            how += f"; about {record['parameters'] * 2 / 1e9:.1f} GB by its published shape"
        return Model(config.id, half, None, shape, record, None, None, size, how)
    from perpo_pipeline.vlm.loading import load_without_weights

    vlm = load_without_weights(found, identity_cache=cache_folder(run) / IDENTITY_CACHE)
    shape = shape_of(vlm, weight_bytes=2 if half else 4, quantization=config.quantization)
    if not has_weights(found):
        size, how = _download_size(config)
        return Model(config.id, half, vlm, shape, record, None, None, size, f"weights: {how}")
    resolved, settings = find_model(config, cache_folder(run))
    return Model(config.id, half, vlm, shape, record, resolved, settings["model"], 0, "here")


def cache_folder(run: Run) -> Path:
    """Where digests of weights may be kept: a plan makes no folder for the run."""
    return run.scratch if run.scratch.is_dir() else Path(tempfile.gettempdir())


def _published_shape(record: dict[str, Any], half: bool, quantization: str | None = None) -> Shape:
    needed = ("parameters", "layers", "width", "inner", "kv_width", "vocabulary")
    special = [name for name in ("query_width", "norms_queries") if name in record]
    return Shape(
        **{name: record[name] for name in (*needed, *special)},
        trained=0,
        weight_bytes=2 if half else 4,
        quantization=quantization,
    )


def _download_size(config: ModelConfig) -> tuple[int | None, str]:
    """Bytes of the files that `perpo sample` would download, or why they are unknown."""
    from fnmatch import fnmatch

    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return None, "size unknown: offline (HF_HUB_OFFLINE)"
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(
            config.id, revision=config.revision, files_metadata=True, timeout=HUB_TIMEOUT_S
        )
    except Exception as error:  # noqa: BLE001 (the hub's client raises errors of three libraries)
        return None, f"size unknown: the hub does not answer ({type(error).__name__})"
    patterns = file_patterns(code=config.trust_remote_code)
    sizes = [
        file.size or 0
        for file in info.siblings or []
        if any(fnmatch(file.rfilename, pattern) for pattern in patterns)
    ]
    return sum(sizes), "as the hub says"
