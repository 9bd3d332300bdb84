"""An adapter merged into its base: in memory for speed, on disk for engines that load one model."""

import fcntl
import fnmatch
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store.atomic import file_sha256, os_errors_explained, sync_directory
from perpo_pipeline.vlm.adapters import (
    FULL_WEIGHTS,
    LORA_WEIGHTS,
    attach_adapter,
    cast_lora,
    read_record,
)
from perpo_pipeline.vlm.files import ResolvedModel, compute_identity, file_patterns
from perpo_pipeline.vlm.quantization import dequantise

if TYPE_CHECKING:
    from perpo_pipeline.vlm.models import Vlm

WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json")


def merge_in_memory(vlm: "Vlm") -> "Vlm":
    """Merge the adapter into the weights: equal up to rounding, and as fast as the base.

    Quantised weights stay beside the adapter, since merging would quantise them anew; it computes
    in the model's dtype, as in training.
    """
    if vlm.quantization is not None:
        cast_lora(vlm.model, vlm.dtype)
        return vlm
    merge = getattr(vlm.model, "merge_and_unload", None)
    if callable(merge):
        vlm.model = merge().eval()
    return vlm


def merge_to_disk(
    resolved: ResolvedModel,
    adapter: Path | None,
    dtype: str,
    directory: Path,
    identity_cache: Path,
) -> Path:
    """Return the folder under `directory` with the merged model; written once, whole or not at all.

    The folder's name is a hash of the base, its quantisation, the adapter's files and `dtype`, the
    dtype of the written weights. `write_merged` says what it holds. It is as big as the base in
    `dtype`.

    Raises ArtifactError if the adapter does not belong to the base or nothing can be written.
    """
    identity = compute_identity(resolved, identity_cache)
    quantised = "" if resolved.quantization is None else f" {resolved.quantization}"
    target = directory / _folder_name(identity + quantised, adapter, dtype)
    with os_errors_explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with _one_process_at_a_time(directory):
            if not target.is_dir():
                part = directory / f".{target.name}.part"
                shutil.rmtree(part, ignore_errors=True)  # left by a killed process
                try:
                    write_merged(resolved, adapter, dtype, part, identity_cache)
                    os.replace(part, target)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
                sync_directory(directory)
    return target


def _folder_name(identity: str, adapter: Path | None, dtype: str) -> str:
    names = ("adapter_config.json", LORA_WEIGHTS, FULL_WEIGHTS)
    files = [] if adapter is None else [adapter / name for name in names]
    present = [file for file in files if file.is_file()]
    parts = [identity, dtype, *(f"{file.name} {file_sha256(file)}" for file in present)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def write_merged(
    resolved: ResolvedModel,
    adapter: Path | None,
    dtype: str,
    directory: Path,
    identity_cache: Path | None = None,
) -> None:
    """Write base and adapter as one model into `directory`, which is created if needed.

    The adapter of a quantised base is merged into the dequantised base, whose weights are what it
    was trained on; without an adapter the dequantised base is written. The weights have the names
    that the base's files use: an engine that knows those need not know transformers' internal
    names. All other files are copies of the base's, code of its own included. Merging runs on the
    CPU, because an engine may already hold the accelerator's memory.

    Raises ArtifactError if the adapter does not belong to the base, InputError if the base cannot
    be loaded, OSError if nothing can be written.
    """
    from safetensors import SafetensorError
    from transformers import GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model: Any = merge_in_memory(_with_full_weights(resolved, adapter, dtype, identity_cache)).model
    # The library refuses to write some settings that it reads; the base's file is copied below.
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        model.save_pretrained(directory)
    except SafetensorError as error:
        raise _as_os_error(error) from error
    _check_names(resolved.path, directory)
    for file in directory.iterdir():
        if not _matches(file, WEIGHT_PATTERNS):
            file.unlink()
    patterns = file_patterns(code=resolved.own_code)
    for file in resolved.path.iterdir():
        if _matches(file, patterns) and not _matches(file, WEIGHT_PATTERNS):
            shutil.copyfile(file, directory / file.name)


def _with_full_weights(
    resolved: ResolvedModel, adapter: Path | None, dtype: str, identity_cache: Path | None
) -> "Vlm":
    """The model on the CPU in `dtype`, a quantised one dequantised, with the adapter beside it."""
    from perpo_pipeline.vlm.loading import load_vlm

    how: dict[str, Any] = {"device": "cpu", "identity_cache": identity_cache, "computes": False}
    if resolved.quantization is None:
        return load_vlm(resolved, dtype=dtype, adapter=adapter, **how)
    trained = {} if adapter is None else read_record(adapter)  # the dtype it was quantised from
    vlm = load_vlm(resolved, dtype=trained.get("base_dtype", dtype), **how)
    dequantise(vlm, dtype)
    if adapter is not None:
        vlm = attach_adapter(vlm, adapter)
    return replace(vlm, quantization=None)


def _as_os_error(error: Exception) -> OSError:
    """The system's error behind the library's error, whose text holds its number."""
    found = re.search(r"os error (\d+)", str(error))
    return OSError(int(found[1]), str(error)) if found else OSError(str(error))


def _matches(file: Path, patterns: tuple[str, ...]) -> bool:
    return file.is_file() and any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns)


def _check_names(base: Path, merged: Path) -> None:
    if unknown := sorted(_weight_names(merged) - _weight_names(base)):
        raise ArtifactError(
            f"the merged model has {len(unknown)} weight names that its base does not have "
            f"(first: {unknown[0]})",
            where=str(base),
            fix="save the base again with save_pretrained of the installed transformers",
        )


def _weight_names(directory: Path) -> set[str]:
    from safetensors import safe_open

    names: set[str] = set()
    for file in directory.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            names.update(weights.keys())
    return names


@contextmanager
def _one_process_at_a_time(directory: Path) -> Iterator[None]:
    """Hold the directory's lock: the processes of several GPUs need the same model at once."""
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
