"""The folder of a merged model: written whole or not at all, and recognised by the next merge.

Its file `perpo_merge.json` records what the model was made from.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.atomic import os_errors_explained, sync_directory, write_atomically
from perpo_pipeline.store.whole_folder import locked, part_of, replacing
from perpo_pipeline.vlm.adapters import weights_sha256

RECORD, CARD = "perpo_merge.json", "README.md"
RECORD_FORMAT = 1
WEIGHTS = "adapter_sha256"
CARD_SHA256, CARD_BEFORE = "card_sha256", "card_sha256_before"
IDENTIFYING = ("merge_format", "base_identity", "adapter", "dtype", "form")
"""Fields of the record that identify a merge, beside WEIGHTS, which the records of earlier versions
lack (`how_weights_differ`); the others say when and with what it was made.

`form` is ADAPTER for an adapter that was not merged, and absent otherwise."""
ADAPTER = "adapter"
RESTARTS = "it starts from the beginning"

Record = dict[str, Any]


def find_previous_merge(out: Path, wanted: Record, adapter: Version) -> Record | None:
    """The record in `out` if it holds the wanted merge; None if it is empty or does not exist.

    `adapter` is the one to merge.

    Raises ArtifactError if `out` holds something else, or the wanted merge with changed files.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    found = _read_record(out)
    if found is None:
        raise ArtifactError(
            "this path already holds something else",
            where=str(out),
            fix="move what is there away, or name an empty or a new folder (perpo merge --out)",
        )
    different = [
        ("" if name == "form" else f"{name} ")
        + f"{_shown(name, found.get(name))}, not {_shown(name, wanted.get(name))}"
        for name in IDENTIFYING
        if found.get(name) != wanted.get(name)
    ]
    if found.get("adapter") == wanted["adapter"]:  # another one has other weights anyway
        different += filter(None, [how_weights_differ(found, adapter)])
    if different:
        raise ArtifactError(
            f"the folder already holds another merge: {'; '.join(different)}",
            where=str(out),
            fix="move this folder away, or name another one (perpo merge --out)",
        )
    changed = [name for name, size in found["files"].items() if _size(out / name) != size]
    if changed:
        raise ArtifactError(
            f"files of this merge are missing or were changed: {', '.join(changed)}",
            where=str(out),
            fix=f"remove the folder, then run the same command: {RESTARTS}",
        )
    return found


def find_merged(out: Path, adapter: Version) -> Record | None:
    """The record in `out`, where this adapter is merged if it is; None without a record.

    Raises ArtifactError if `out` was merged from other weights of the adapter, which has been
    trained again since.
    """
    found = _read_record(out)
    if found is not None and (how := how_weights_differ(found, adapter)):
        raise ArtifactError(
            f"this model was merged from other weights of the adapter: {how}",
            where=str(out),
            fix="move this folder away, or remove it, then run the same command: it merges the "
            "adapter's weights of today",
        )
    return found


def how_weights_differ(found: Record, adapter: Version) -> str:
    """How the merged weights differ from those of `adapter`, in words; "" if nothing says so.

    Without a sha256 in the record, a merge before the adapter was trained had other weights.
    """
    if WEIGHTS in found:
        own = weights_sha256(adapter)
        return "" if found[WEIGHTS] == own else f"{WEIGHTS} {found[WEIGHTS]}, not {own}"
    merged, trained = str(found.get("made_at", "")), str(adapter.manifest["created_at"])
    return f"made at {merged}, before this adapter was trained at {trained}" * (merged < trained)


def doubt(found: Record) -> str:
    """What to say where the record names no sha256 of the adapter's weights; "" where it does."""
    if WEIGHTS in found:
        return ""
    return (
        "an earlier version wrote its record, without the sha256 of the adapter's weights, so they "
        "are known by fingerprint and dates alone"
    )


def _shown(name: str, value: Any) -> str:
    """A field of a record and its value, for people."""
    if name == "form":
        return "an adapter alone" if value == ADAPTER else "a merged model"
    if isinstance(value, dict):
        return " ".join(map(str, value.values()))
    return str(value)


def write_folder(
    out: Path, record: Record, write: Callable[[Path], None], card: Callable[[Record], str]
) -> None:
    """Let `write` fill a new folder, add card and record, then move the folder to `out`."""
    with os_errors_explained(out, RESTARTS), replacing(out, settle=_settle_files) as folder:
        write(folder)
        if record.get("form") != ADAPTER:
            _declare_dtype(folder / "config.json", record["dtype"])
        sizes = {file.name: _size(file) for file in sorted(folder.iterdir())}
        record = {**record, "files": sizes}
        _write_card(folder, record, card(record))


def remove_leftover(out: Path) -> None:
    """Remove what a merge into `out` left that was killed once its folder was in place."""
    if part_of(out).is_dir():
        with locked(out) as part:
            shutil.rmtree(part, ignore_errors=True)


def update_card(out: Path, record: Record, text: str) -> str:
    """Write the card again if its text has changed; returns what was done, for a message."""
    new, found = _sha256(text.encode()), _card_sha256(out)
    before = record.get(CARD_BEFORE, "")  # a kill came between the record and its card
    if new == record[CARD_SHA256] and found != before:
        return ""
    if found not in (new, record[CARD_SHA256], before):
        return f"; {CARD} was edited by hand and is kept"
    _write_card(out, record, text)
    return f"; {CARD} updated"


def _read_record(out: Path) -> Record | None:
    """The record, or None if this program cannot have written it."""
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_ours = isinstance(record, dict) and isinstance(record.get("files"), dict)
    return record if is_ours else None


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def _settle_files(folder: Path) -> None:
    """Put all files on disk, with the mode of the record: safetensors makes its files private."""
    mode = (folder / RECORD).stat().st_mode
    for file in folder.iterdir():
        file.chmod(mode)
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    sync_directory(folder)


def _declare_dtype(file: Path, dtype: str) -> None:
    """Write the dtype of the weights into config.json: libraries compute in the dtype it names."""
    config = json.loads(file.read_text(encoding="utf-8"))
    parts = [part for part in config.values() if isinstance(part, dict) and "model_type" in part]
    for part in (config, *parts):
        part.update({name: dtype for name in ("dtype", "torch_dtype") if name in part})
    if "torch_dtype" not in config:
        config["dtype"] = dtype
    _write_text(file, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _write_card(folder: Path, record: Record, text: str) -> None:
    # The record first: it knows both cards, whichever a kill leaves.
    new, before = _sha256(text.encode()), _card_sha256(folder)
    entire = {name: value for name, value in record.items() if name != CARD_BEFORE}
    entire |= {CARD_SHA256: new} | ({} if before in (None, new) else {CARD_BEFORE: before})
    _write_text(folder / RECORD, json.dumps(entire, indent=2, ensure_ascii=False) + "\n")
    _write_text(folder / CARD, text)


def _card_sha256(folder: Path) -> str | None:
    card = folder / CARD
    return _sha256(card.read_bytes()) if card.is_file() else None


def _write_text(file: Path, text: str) -> None:
    write_atomically(file, lambda sink: sink.write(text.encode()))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
