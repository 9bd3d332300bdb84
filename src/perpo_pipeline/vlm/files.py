"""Find a model's files and compute which model they are exactly, without loading it."""

import contextlib
import fnmatch
import hashlib
import json
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

from perpo_pipeline.errors import InputError, first_line
from perpo_pipeline.vlm.chat_settings import UNSET, ChatSettings
from perpo_pipeline.vlm.hub_kernels import check_no_kernels
from perpo_pipeline.vlm.image_limits import NO_LIMITS, ImageLimits
from perpo_pipeline.vlm.own_code import (
    CODE_PATTERNS,
    announce,
    check_pinned,
    code_is_complete,
    has_code,
)

IDENTITY_CACHE = ".model-identity.json"  # in the run's folder
# Files that a run can depend on: weights, configuration, tokenizer, processor; no pickles, and code
# only where the run trusts it (`file_patterns`).
MODEL_FILE_PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*processor_config.json",
    "chat_template*",
    "*.model",
)
SETTINGS_PATTERNS = tuple(name for name in MODEL_FILE_PATTERNS if "safetensors" not in name)
HUB_FIX = (
    "give a local directory, or download it first with `hf download {model_id}`; "
    "HF_HUB_OFFLINE=1 forbids downloads, HF_HOME says where the local cache is, "
    "HF_TOKEN opens gated models"
)


@dataclass(frozen=True)
class ResolvedModel:
    """A model whose files are on this machine.

    `commit` is set only for a snapshot of a hub; `weights_sha256` only if it is already known.
    `chat` and `own_marks` say how its prompts are written (see `Vlm`), `limits` how large it sees
    an image, `quantization` how its weights are held once loaded (`model.quantization`).
    `own_code`: it needs Python code of its own, which the run trusts (`model.trust_remote_code`).
    """

    path: Path
    model_id: str
    commit: str | None = None
    weights_sha256: str | None = None
    chat: ChatSettings = UNSET
    own_marks: str = ""
    limits: ImageLimits = NO_LIMITS
    quantization: str | None = None
    own_code: bool = False


def file_patterns(*, code: bool) -> tuple[str, ...]:
    """Patterns of the files that belong to a model; `code`: its own Python code does, too."""
    return (*MODEL_FILE_PATTERNS, *CODE_PATTERNS) if code else MODEL_FILE_PATTERNS


def resolve_model(
    model_id: str, revision: str | None = None, *, trust_remote_code: bool = False
) -> ResolvedModel:
    """Find `model_id`: `testbed` (shipped), a local directory, or a hub id (local cache first).

    Raises InputError if it cannot be found or downloaded, or has no safetensors weights. Without
    `trust_remote_code` also for a kernel in its config.json; with it also for code from another
    repository, and ConfigError for a hub id whose revision is no commit.
    """
    if model_id == "testbed":
        from perpo_pipeline.testbed import shipped_model_dir

        return _checked(ResolvedModel(Path(shipped_model_dir()), model_id))
    path = Path(model_id).expanduser()
    if path.is_dir():
        return _checked(ResolvedModel(path.resolve(), model_id), trust_remote_code)
    if is_path(model_id):
        raise InputError(
            f"The model directory {model_id!r} does not exist.",
            fix="check the path, or give a hub id such as llava-hf/llava-1.5-7b-hf",
        )
    if trust_remote_code:
        check_pinned(model_id, revision)
    snapshot = _hub_snapshot(model_id, revision, code=trust_remote_code)
    return _checked(ResolvedModel(snapshot, model_id, commit=snapshot.name), trust_remote_code)


def is_path(model_id: str) -> bool:
    """Whether a name can only be that of a folder, which may not exist."""
    is_absolute = Path(model_id).expanduser().is_absolute()
    return is_absolute or model_id.startswith((".", "~")) or model_id.count("/") > 1


def find_settings(
    model_id: str,
    revision: str | None = None,
    *,
    download: bool = True,
    trust_remote_code: bool = False,
) -> ResolvedModel | None:
    """A model's files, perhaps without its weights: those are never downloaded.

    None if they cannot be had: `resolve_model` then says why. Raises as `find_on_this_machine`.
    """
    found = find_on_this_machine(model_id, revision, trust_remote_code=trust_remote_code)
    if found is not None or not download:
        return found
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = [*SETTINGS_PATTERNS, *(CODE_PATTERNS if trust_remote_code else ())]
        folder = snapshot_download(model_id, revision=revision, allow_patterns=patterns)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        return None
    snapshot = Path(folder)
    return _with_code(ResolvedModel(snapshot, model_id, snapshot.name), trust_remote_code)


def find_on_this_machine(
    model_id: str, revision: str | None = None, *, trust_remote_code: bool = False
) -> ResolvedModel | None:
    """As `resolve_model`, but downloads nothing and needs no weights; None if it is not here."""
    path = Path(model_id).expanduser()
    if model_id == "testbed":
        return resolve_model(model_id)
    if path.is_dir():
        return _if_configured(ResolvedModel(path.resolve(), model_id), trust_remote_code)
    if trust_remote_code and not is_path(model_id):
        check_pinned(model_id, revision)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            model_id,
            revision=revision,
            allow_patterns=list(MODEL_FILE_PATTERNS),
            local_files_only=True,
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    path = Path(found)
    if trust_remote_code and not code_is_complete(path):
        return None
    return _if_configured(ResolvedModel(path.resolve(), model_id, path.name), trust_remote_code)


def _if_configured(found: ResolvedModel, trust_remote_code: bool) -> ResolvedModel | None:
    has_config = (found.path / "config.json").is_file()
    return _with_code(found, trust_remote_code) if has_config else None


def _with_code(found: ResolvedModel, trust_remote_code: bool) -> ResolvedModel:
    """The same model, with its own code if it needs some and the run trusts it.

    Raises InputError for a kernel of a hub: it is no code of the model's own.
    """
    check_no_kernels(found.path)
    return replace(found, own_code=trust_remote_code and has_code(found.path))


def announce_code(resolved: ResolvedModel) -> None:
    """Warn, if code of the model's own is going to run (`own_code.announce`)."""
    if resolved.own_code:
        announce(resolved.path, resolved.model_id, resolved.commit)


def has_weights(resolved: ResolvedModel) -> bool:
    """Whether all of the model's weights are in its folder."""
    return not _missing_weights(resolved.path)


def compute_identity(resolved: ResolvedModel, cache_file: Path | None = None) -> str:
    """The exact model's name: `id@commit` from the hub, else `sha256:...` over its files.

    Its own code is part of the files where the run trusts it.

    Hashing 14 GB takes a while, so each file's digest is saved in `cache_file` (JSON, created if
    absent) under the file's path, size and modification time.
    """
    if resolved.commit is not None:
        return f"{resolved.model_id}@{resolved.commit}"
    if resolved.weights_sha256 is not None:
        return f"sha256:{resolved.weights_sha256}"
    memory = _in_memory.get()
    known = _read_cache(cache_file)
    digests = known | (memory or {})
    total = hashlib.sha256()
    for file in _model_files(resolved.path, code=resolved.own_code):
        stat = file.stat()
        key = f"{file}|{stat.st_size}|{stat.st_mtime_ns}"
        if key not in digests:
            with file.open("rb") as stream:
                digests[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.name}\0{digests[key]}\n".encode())
    if memory is not None:
        memory.update(digests)
    elif cache_file is not None and digests != known:
        _write_cache(cache_file, digests)
    return f"sha256:{total.hexdigest()}"


# Digests by path, size and time within `keeping_no_digests`, which the caches of runs do not get.
_in_memory: ContextVar[dict[str, str] | None] = ContextVar("digests in memory", default=None)


@contextlib.contextmanager
def keeping_no_digests() -> Iterator[None]:
    """Within, `compute_identity` reads caches of digests and writes none: it remembers them."""
    token = _in_memory.set({})
    try:
        yield
    finally:
        _in_memory.reset(token)


def read_templates(directory: Path) -> str:
    """The files that may hold a model's chat template, as one text."""
    patterns = ("chat_template*", "*tokenizer_config.json", "*processor_config.json")
    files = [file for file in _model_files(directory) if any(map(file.match, patterns))]
    return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)


def _model_files(directory: Path, *, code: bool = False) -> list[Path]:
    patterns = file_patterns(code=code)
    return sorted(
        file
        for file in directory.iterdir()
        if file.is_file() and any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns)
    )


def _checked(resolved: ResolvedModel, trust_remote_code: bool = False) -> ResolvedModel:
    """The same model; InputError if transformers cannot load it or would load a pickle."""
    where = str(resolved.path)
    if not (resolved.path / "config.json").is_file():
        raise InputError(
            f"Model {resolved.model_id!r} has no config.json.",
            where=where,
            fix="give the directory that save_pretrained or the hub wrote",
        )
    if missing := _missing_weights(resolved.path):
        pickled = sorted(f.name for f in resolved.path.glob("*.bin"))
        found = f"it has only pickled ones ({', '.join(pickled)})" if pickled else "it has none"
        raise InputError(
            f"Model {resolved.model_id!r} lacks weights: {', '.join(missing)}; {found}.",
            where=where,
            fix="convert the weights with save_pretrained(..., safe_serialization=True): "
            "pickled weights can run code and are never loaded",
        )
    return _with_code(resolved, trust_remote_code)


def _missing_weights(directory: Path) -> list[str]:
    """Names of the weight files that are missing."""
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return [] if list(directory.glob("*.safetensors")) else ["model.safetensors"]
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "The index of the model's weights is damaged.", where=str(index)
        ) from error
    return sorted(name for name in shards if not (directory / name).is_file())


def _hub_snapshot(model_id: str, revision: str | None, *, code: bool = False) -> Path:
    """The snapshot's folder: in the local cache if complete there, else downloaded from the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [*file_patterns(code=code), "README.md"]  # which names the licence
    where = f"{model_id}@{revision}" if revision else model_id
    try:
        try:
            cached = Path(
                snapshot_download(
                    model_id, revision=revision, allow_patterns=patterns, local_files_only=True
                )
            )
            is_whole = (cached / "config.json").is_file() and not _missing_weights(cached)
            if is_whole and (not code or code_is_complete(cached)):
                return cached
        except LocalEntryNotFoundError:
            pass  # not cached: ask the hub
        return Path(snapshot_download(model_id, revision=revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise InputError(
            f"{model_id!r} is neither `testbed`, a local directory nor a hub id.",
            fix="give a directory, or an id such as llava-hf/llava-1.5-7b-hf",
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"Model {model_id!r} is not in the local cache and could not be downloaded: "
            f"{first_line(error)}",
            where=where,
            fix=HUB_FIX.format(model_id=model_id),
        ) from error


def _read_cache(cache_file: Path | None) -> dict[str, str]:
    """The saved digests; none if the cache is damaged, which only costs time."""
    if cache_file is None or not cache_file.is_file():
        return {}
    try:
        content = json.loads(cache_file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    if not isinstance(content, dict):
        return {}
    return {str(key): str(value) for key, value in content.items()}


def _write_cache(cache_file: Path, digests: dict[str, str]) -> None:
    """Save the digests; if that fails, the next run hashes again."""
    temporary = cache_file.with_name(f"{cache_file.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(digests, indent=1, sort_keys=True), encoding="utf-8")
        temporary.replace(cache_file)
