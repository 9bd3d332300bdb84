"""`perpo merge`: an adapter artifact and its base -> a model, or an adapter, in the hub's layout.

The result is not an artifact: the user chooses its folder, which holds the files a hub expects.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from perpo_pipeline.errors import ArtifactError, ConfigError, InputError
from perpo_pipeline.inference.vllm_engine import exact_lora_rank
from perpo_pipeline.merge.adapter_folder import check_travels, write_adapter
from perpo_pipeline.merge.card import LICENSE_FIELDS, model_card
from perpo_pipeline.merge.evaluations import evaluations_of
from perpo_pipeline.merge.folder import (
    ADAPTER,
    CARD,
    RECORD_FORMAT,
    WEIGHTS,
    Record,
    doubt,
    find_previous_merge,
    remove_leftover,
    update_card,
    write_folder,
)
from perpo_pipeline.run import Console
from perpo_pipeline.status.lineage import trace
from perpo_pipeline.store.artifacts import CURRENT, MANIFEST, Version, damaged_files, open_version
from perpo_pipeline.store.provenance import git_commit, package_versions
from perpo_pipeline.suggestions import closest_path
from perpo_pipeline.vlm.adapters import check_adapter_files, read_record, weights_sha256
from perpo_pipeline.vlm.chat_rendering import (
    Message,
    leaves_begin_token,
    system_form,
    system_turn,
)
from perpo_pipeline.vlm.chat_settings import recorded_settings
from perpo_pipeline.vlm.families import family_of
from perpo_pipeline.vlm.files import ResolvedModel, announce_code, compute_identity, resolve_model
from perpo_pipeline.vlm.image_limits import limits_recorded
from perpo_pipeline.vlm.inputs import IDENTITY_CACHE
from perpo_pipeline.vlm.load_errors import load_errors_explained
from perpo_pipeline.vlm.merging import write_merged
from perpo_pipeline.vlm.own_code import code_files, named_code
from perpo_pipeline.vlm.processors import arguments_from_files, load_processor
from perpo_pipeline.vlm.quantization import check_installed

DTYPES = ("auto", "float32", "bfloat16")


def merge(
    adapter: Path,
    out: Path,
    *,
    model: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: str = "auto",
    metrics: Sequence[Path] = (),
    adapter_only: bool = False,
    console: Console | None = None,
) -> Path:
    """Merge `adapter`, an artifact, into its base; write the model to `out`, whole or not at all.

    model, revision: the base, if it is no longer found under the name in the adapter's manifest.
    trust_remote_code: the base's own code may run (`model.trust_remote_code`).
    dtype: the dtype of the written weights; `auto` is that of the training.
    metrics: artifacts for the model card; by default those in the adapter's run.
    adapter_only: write the adapter alone, as PEFT loads it, with a card; nothing is merged.

    If `out` already holds the merge of these weights, only the metrics in its card are updated.

    Raises ArtifactError if `adapter` is not an adapter artifact or belongs to another base, if
    weights trained in full are to be an adapter, and if `out` has other content or cannot be
    written; InputError if the base is not found; ConfigError
    for an unknown dtype.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}", fix=f"use one of {', '.join(DTYPES)}")
    console = console or Console()
    started = time.monotonic()
    version = open_adapter(adapter)
    if adapter_only:
        check_travels(version)
    base = find_base(version, model, revision, trust_remote_code=trust_remote_code)
    announce_code(base)
    record = _new_record(version, base, dtype) | ({"form": ADAPTER} if adapter_only else {})
    place = out.resolve()
    previous = find_previous_merge(place, record, version)
    evaluations, lineage = evaluations_of(version, metrics), trace([version])
    settings = version.manifest["settings"]
    with load_errors_explained(base):
        limits = limits_recorded(settings)
        arguments = arguments_from_files(base.path, limits, own_code=base.own_code)
        processor = load_processor(base.path, own_code=base.own_code)
        system = trained_system_turn(processor, settings)
        lacks_begin = leaves_begin_token(processor, recorded_settings(settings))
    rank = None
    if adapter_only and base.quantization is None:  # vLLM would load the base in full
        rank = exact_lora_rank(family_of(base), version.path)

    def card(record: Record) -> str:
        return model_card(
            record,
            version,
            lineage,
            evaluations,
            arguments,
            system,
            rank,
            add_special_tokens=lacks_begin,
        )

    def write(to: Path) -> None:
        if adapter_only:
            write_adapter(version.path, to, record["base_model"], base)
        else:
            write_merged(base, version.path, record["dtype"], to)

    if previous is not None:
        remove_leftover(place)
        change = update_card(place, previous, card(previous))
        said = "; ".join(filter(None, [f"up to date{change} ({out})", doubt(previous)]))
        console.say(f"merge {version.variant}: {said}")
        return out
    write_folder(place, record, write, card)
    if adapter_only:
        console.say(f"merge {version.variant}: the adapter alone, not merged ({out})")
        return out
    seconds = time.monotonic() - started
    how = f", into the base dequantised from {base.quantization}," if base.quantization else ""
    console.say(f"merge {version.variant}: {record['dtype']}{how} in {seconds:.1f} s ({out})")
    return out


def open_adapter(path: Path) -> Version:
    """Open the adapter artifact at `path`, or its version in use; raises if a file was changed."""
    if not (path / MANIFEST).is_file() and not (path / CURRENT).is_file():
        near = closest_path(path)
        raise ArtifactError(
            "this is not an adapter made by `perpo train`"
            if path.exists()
            else "this folder does not exist",
            where=str(path),
            fix=f"did you mean {near}?"
            if near
            else "give a finished adapter artifact, such as data/<run>/adapter/<method>",
        )
    version = open_version(path, "adapter")
    if damaged := damaged_files(version):
        raise ArtifactError(
            f"damaged files: {', '.join(damaged)}",
            where=str(version.path),
            fix=f"remove this directory and run: {version.remake()}",
        )
    return version


def find_base(
    adapter: Version,
    model: str | None = None,
    revision: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> ResolvedModel:
    """Find the base on this machine and identify it; raises ArtifactError if it is another model.

    If the manifest names a model on a hub, the commit of the training is requested. Raises
    ConfigError where the base needs code of its own, which `trust_remote_code` does not let run:
    a manifest that somebody else wrote may not decide that.
    """
    asked, revision = (model, revision) if model else _trained_base(adapter)
    try:
        resolved = resolve_model(asked, revision, trust_remote_code=trust_remote_code)
    except InputError as error:
        if_moved = "if the base has moved, name its new place with --model"
        fix = "; ".join(filter(None, [error.fix, None if model else if_moved]))
        raise InputError(error.what, where=error.where, fix=fix) from error
    if adapter.manifest["settings"].get("trust_remote_code") and not trust_remote_code:
        _refuse_code(resolved)
    caches = [above / IDENTITY_CACHE for above in adapter.path.resolve().parents[:3]]
    cache = next((file for file in caches if file.is_file()), None)
    identity = compute_identity(resolved, cache)
    quantization = read_record(adapter.path).get("base_quantization")
    check_installed(quantization)
    check_adapter_files(adapter.path, identity, quantization)
    resolved = replace(resolved, quantization=quantization)
    if resolved.commit is None:  # do not hash it a second time
        return replace(resolved, weights_sha256=identity.removeprefix("sha256:"))
    return resolved


def _refuse_code(base: ResolvedModel) -> None:
    if named_code(base.path):
        raise ConfigError(
            f"the adapter was trained on {base.model_id} with the model's own Python code "
            f"({', '.join(code_files(base.path))}), which does not run without your word",
            where=str(base.path),
            fix="name the run's file with --config: its model.trust_remote_code must be true",
        )


def trained_system_turn(processor: Any, settings: Mapping[str, Any]) -> Message | None:
    """The system turn of a training with these settings, as the base's template reads it.

    None without one. Raises InputError as `system_form` does.
    """
    chat = recorded_settings(settings)
    if chat.system_prompt is None:
        return None
    return system_turn(system_form(processor, chat), chat.system_prompt)


def _trained_base(adapter: Version) -> tuple[str, str | None]:
    """Name and revision of the base that the adapter was trained on."""
    notes = adapter.manifest["notes"]
    if not notes.get("model_id"):
        raise ConfigError(
            "the adapter's manifest names no base model",
            where=str(adapter.path),
            fix="name the base model with --model",
        )
    identity = str(read_record(adapter.path).get("base_identity", ""))
    name, _, commit = identity.rpartition("@")
    return notes["model_id"], commit if name == notes["model_id"] else notes.get("revision")


def _new_record(adapter: Version, base: ResolvedModel, dtype: str) -> Record:
    """The content of perpo_merge.json without its files; a folder's name, not its path."""
    is_directory = base.commit is None and base.model_id != "testbed"
    return {
        "merge_format": RECORD_FORMAT,
        "base_model": base.path.name if is_directory else base.model_id,
        "base_is_directory": is_directory,
        "base_identity": compute_identity(base),
        **{f"base_{name}": value for name, value in _license(base.path).items()},
        **({} if base.quantization is None else {"base_quantization": base.quantization}),
        **({"own_code": True} if base.own_code else {}),
        "adapter": {"variant": adapter.variant, "fingerprint": adapter.fingerprint},
        WEIGHTS: weights_sha256(adapter),
        "dtype": adapter.manifest["settings"]["dtype"] if dtype == "auto" else dtype,
        "packages": package_versions(),
        "git_commit": git_commit(),
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _license(base: Path) -> dict[str, str]:
    """The licence in the header of the base's own card, if that is among its files.

    A licence that the hub does not know is `other`, with a name and an address of its text.
    """
    from huggingface_hub.repocard import metadata_load

    card = base / CARD
    try:
        found = metadata_load(card) if card.is_file() else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    named = {name: (found or {}).get(name) for name in LICENSE_FIELDS}
    texts = {name: value for name, value in named.items() if isinstance(value, str)}
    if "://" not in texts.get("license_link", ""):  # a file in the base's repository
        texts.pop("license_link", None)
    return texts if "license" in texts else {}
