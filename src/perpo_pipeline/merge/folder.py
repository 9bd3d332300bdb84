"""The folder that a merged model is written to: made whole or not at all, and known again.

`perpo_merge.json` in it says what the model was made of.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store.atomic import os_errors_explained, sync_directory, write_atomically

RECORD, CARD = "perpo_merge.json", "README.md"
RECORD_FORMAT = 1
# What makes it this very merge; the rest of the record says when and with what it was made.
IDENTIFYING = ("merge_format", "base_identity", "adapter", "dtype")
ANEW = "it starts anew"

Record = dict[str, Any]


def made_before(out: Path, wanted: Record) -> Record | None:
    """The record in `out` if that holds this very merge, None if it is empty or not there.

    Raises ArtifactError where something else is there, or the merge with other files.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    found = _read_record(out)
    if found is None:
        raise ArtifactError(
            "there is something else already",
            where=str(out),
            fix="give a folder that is empty or not there with --out",
        )
    different = [name for name in IDENTIFYING if found.get(name) != wanted[name]]
    if different:
        told = "; ".join(f"{name} {found.get(name)}, not {wanted[name]}" for name in different)
        raise ArtifactError(
            f"there is another merge already: {told}",
            where=str(out),
            fix="give another folder with --out, or remove this one",
        )
    changed = [name for name, size in found["files"].items() if _size(out / name) != size]
    if changed:
        raise ArtifactError(
            f"files of this merge are missing or were changed: {', '.join(changed)}",
            where=str(out),
            fix=f"remove the folder, then run the same command: {ANEW}",
        )
    return found


def write_folder(
    out: Path, record: Record, write: Callable[[Path], None], card: Callable[[Record], str]
) -> None:
    """Let `write` fill a folder, add card and record, and only then let it take `out`'s place."""
    with os_errors_explained(out, ANEW), _written_whole(out) as folder:
        write(folder)
        _declare_dtype(folder / "config.json", record["dtype"])
        sizes = {file.name: _size(file) for file in sorted(folder.iterdir())}
        record = {**record, "files": sizes}
        _write_card(folder, record, card(record))


def renew_card(out: Path, record: Record, text: str) -> str:
    """Write the card anew where its figures have changed; what was done, for a message."""
    if _sha256(text.encode()) == record["card_sha256"]:
        return ""
    card = out / CARD
    if not card.is_file() or _sha256(card.read_bytes()) != record["card_sha256"]:
        return f"; {CARD} was changed by hand and is left so"
    _write_card(out, record, text)
    return f"; {CARD} written anew"


def _read_record(out: Path) -> Record | None:
    """None where there is none that this program could have written."""
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_ours = isinstance(record, dict) and isinstance(record.get("files"), dict)
    return record if is_ours else None


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


@contextmanager
def _written_whole(out: Path) -> Iterator[Path]:
    """A new folder that takes the place of `out` at the end; one process at a time."""
    part = out.with_name(f".{out.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    with (part / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(
                "another process is writing there", where=str(out), fix="wait until it ends"
            ) from None
        folder = part / "model"
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        try:
            folder.mkdir()
            yield folder
            _settle_files(folder)
            os.replace(folder, out)
            sync_directory(out.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _settle_files(folder: Path) -> None:
    """On disk, and readable by whom this process lets read: safetensors' files are private."""
    mode = (folder / RECORD).stat().st_mode
    for file in folder.iterdir():
        file.chmod(mode)
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    sync_directory(folder)


def _declare_dtype(file: Path, dtype: str) -> None:
    """Let config.json name the dtype of the weights: libraries compute in what stands there."""
    config = json.loads(file.read_text(encoding="utf-8"))
    parts = [part for part in config.values() if isinstance(part, dict) and "model_type" in part]
    for part in (config, *parts):
        part.update({name: dtype for name in ("dtype", "torch_dtype") if name in part})
    if "torch_dtype" not in config:
        config["dtype"] = dtype
    _write_text(file, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _write_card(folder: Path, record: Record, text: str) -> None:
    _write_text(folder / CARD, text)
    entire = {**record, "card_sha256": _sha256(text.encode())}
    _write_text(folder / RECORD, json.dumps(entire, indent=2, ensure_ascii=False) + "\n")


def _write_text(file: Path, text: str) -> None:
    write_atomically(file, lambda sink: sink.write(text.encode()))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
