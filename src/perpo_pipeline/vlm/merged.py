"""A model with its adapter folded in, on disk: to publish, or for engines that want one model."""

import fcntl
import fnmatch
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store.atomic import file_sha256, os_errors_explained, sync_directory
from perpo_pipeline.vlm.adapters import FULL_WEIGHTS, LORA_WEIGHTS
from perpo_pipeline.vlm.files import MODEL_FILE_PATTERNS, ResolvedModel, model_identity

WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json")


def merge_to_disk(
    resolved: ResolvedModel, adapter: Path, dtype: str, directory: Path, identity_cache: Path
) -> Path:
    """The folder under `directory` with the merged model; made once, whole or not there.

    It is named by a hash of the base, the adapter's files and `dtype`, in which the weights are
    written. Weights have the names of the base's own files: engines that know these need not know
    transformers' names inside. All other files are the base's. As big as the base in `dtype`.
    Raises ArtifactError for an adapter that does not belong to the base and where it cannot be
    written.
    """
    identity = model_identity(resolved, identity_cache)
    target = directory / _name(identity, adapter, dtype)
    with os_errors_explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(directory):
            if not target.is_dir():
                part = directory / f".{target.name}.part"
                shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
                try:
                    write_merged(resolved, adapter, dtype, part, identity_cache)
                    os.replace(part, target)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
                sync_directory(directory)
    return target


def _name(identity: str, adapter: Path, dtype: str) -> str:
    names = ("adapter_config.json", LORA_WEIGHTS, FULL_WEIGHTS)
    present = [adapter / name for name in names if (adapter / name).is_file()]
    parts = [identity, dtype, *(f"{file.name} {file_sha256(file)}" for file in present)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def write_merged(
    resolved: ResolvedModel,
    adapter: Path,
    dtype: str,
    directory: Path,
    identity_cache: Path | None = None,
) -> None:
    """Write base and adapter as one model into `directory`, which is made where it is not there.

    Names of weights and all other files are the base's. Merging is done on the CPU: an engine may
    already hold the accelerator's memory. Raises ArtifactError for an adapter that does not belong
    to the base, InputError for a base that cannot be loaded, OSError where nothing can be written.
    """
    from safetensors import SafetensorError
    from transformers import GenerationConfig
    from transformers.utils import logging

    from perpo_pipeline.vlm.loading import load_vlm, merge_adapter

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    vlm = load_vlm(
        resolved, dtype=dtype, device="cpu", adapter=adapter, identity_cache=identity_cache
    )
    model: Any = merge_adapter(vlm).model
    # The library refuses to write some that it reads; the base's own file is copied below.
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        model.save_pretrained(directory)
    except SafetensorError as error:
        raise _as_os_error(error) from error
    _check_names(resolved.path, directory)
    for file in directory.iterdir():
        if not _matches(file, WEIGHT_PATTERNS):
            file.unlink()
    for file in resolved.path.iterdir():
        if _matches(file, MODEL_FILE_PATTERNS) and not _matches(file, WEIGHT_PATTERNS):
            shutil.copyfile(file, directory / file.name)


def _as_os_error(error: Exception) -> OSError:
    """The system's error inside the library's, which has its number in the text alone."""
    found = re.search(r"os error (\d+)", str(error))
    return OSError(int(found[1]), str(error)) if found else OSError(str(error))


def _matches(file: Path, patterns: tuple[str, ...]) -> bool:
    return file.is_file() and any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns)


def _check_names(base: Path, merged: Path) -> None:
    if unknown := sorted(_weight_names(merged) - _weight_names(base)):
        raise ArtifactError(
            f"The merged model names {len(unknown)} weights as its base does not "
            f"(first: {unknown[0]}).",
            where=str(base),
            fix="write the base anew with save_pretrained of the installed transformers",
        )


def _weight_names(directory: Path) -> set[str]:
    from safetensors import safe_open

    names: set[str] = set()
    for file in directory.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            names.update(weights.keys())
    return names


@contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
    """The processes of several GPUs ask for the same model at the same time."""
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
