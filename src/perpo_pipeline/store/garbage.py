"""Versions of a run that nothing refers to, for `perpo gc`: their size, and what they are of."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store.artifacts import (
    CURRENT,
    MANIFEST,
    MERGED,
    MODEL,
    STARTED,
    being_written,
    follow_current,
)
from perpo_pipeline.store.made_from import is_same_input

OPTIONS = "options.json"
DAY_S = 86_400
SHOWN = 4  # settings named in a line
Json = dict[str, Any]


@dataclass(frozen=True)
class Unused:
    """A folder that nothing refers to.

    `what` says how it differs from the version in use; `kept` why it is left for now, or is "".
    """

    path: Path
    size: int  # bytes
    what: str
    kept: str

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.path)


def find_unused(run_dir: Path, keep_days: float) -> list[Unused]:
    """Version directories under `run_dir` that no `current` file and no lineage of one refers to.

    A version that options asked for, and one that is unfinished, is kept for `keep_days` after it
    was last written. A version that a process is writing is no candidate. Merged models are
    unused while no process is writing: stages make them again. Of a run that was made in rounds
    (`perpo iterate`) the rounds' own folders count as well; a round's merged model is in use as
    long as its adapter is.
    """
    rounds = _rounds_of(run_dir)
    folders = [run_dir, *rounds]
    found = {p.parent.resolve() for one in folders for p in one.glob(f"*/*/*/{STARTED}")}
    used = {path for one in folders for path in _used(one)}
    unused = [
        Unused(path, _size(path), _difference(path), _why_kept(path, keep_days))
        for path in sorted(found - used)
        if not being_written(path)
    ]
    if not any(being_written(path) for path in found):
        merged = sorted(path.resolve() for path in (run_dir / MERGED).glob("*") if path.is_dir())
        unused += [Unused(path, _size(path), "a merged model", "") for path in merged]
        adapters = {path.name for path in used if path.parent.parent.name == "adapter"}
        models = (path.resolve() for one in rounds for path in sorted((one / MODEL).glob("*")))
        unused += [
            Unused(path, _size(path), "the merged model of an adapter that is not in use", "")
            for path in models
            if path.name not in adapters
        ]
    return unused


def _rounds_of(run_dir: Path) -> list[Path]:
    """The folders of rounds inside the folder of a run: each has artifacts of its own."""
    return sorted({pointer.parents[2] for pointer in run_dir.glob(f"*/*/*/{CURRENT}")})


def shown_size(size: int) -> str:
    """A number of bytes in words: `1.2 GB`."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def _used(run_dir: Path) -> set[Path]:
    """All that a `current` file leads to; where one is damaged, every version beside it counts."""
    used: set[Path] = set()
    frontier: list[Path] = []
    for pointer in sorted(run_dir.glob(f"*/*/{CURRENT}")):
        try:
            frontier.append(follow_current(pointer.parent))
        except ArtifactError:
            frontier += [file.parent for file in pointer.parent.glob(f"*/{STARTED}")]
    while frontier:
        path = frontier.pop().resolve()
        if path not in used:
            used.add(path)
            inputs = (_read(path / MANIFEST) or _read(path / STARTED)).get("inputs", {})
            frontier += [path / record["path"] for record in inputs.values()]
    return used


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _why_kept(path: Path, keep_days: float) -> str:
    """Why a version is left although nothing refers to it; "" if it is not."""
    age_s = time.time() - max(
        (file.stat().st_mtime for file in path.iterdir()), default=path.stat().st_mtime
    )
    if age_s >= keep_days * DAY_S:
        return ""
    if not (path / MANIFEST).is_file():
        return "unfinished; its stage resumes it"
    options = _read(path.parent / OPTIONS).get(path.name) or _read(path / MANIFEST).get("options")
    asked = [option for given in (options or {}).values() for option in given.values()]
    return f"{', '.join(map(str, asked))} asked for it" if asked else ""


def _difference(path: Path) -> str:
    """How a version differs from the one in use, in its settings or its inputs."""
    own = _read(path / MANIFEST) or _read(path / STARTED)
    pointer = path.parent / CURRENT
    current = path.parent / pointer.read_text().strip() if pointer.is_file() else None
    if current is None:
        return "none is in use"
    other = _read(current / MANIFEST)
    changed = list(_changed(own.get("settings", {}), other.get("settings", {})))
    if changed:
        return "; ".join([*changed[:SHOWN], *["..."] * (len(changed) > SHOWN)])
    inputs = [
        record["artifact"]
        for name, record in own.get("inputs", {}).items()
        if not is_same_input(record, other.get("inputs", {}).get(name, {}))
    ]
    return f"made from other {' and '.join(inputs)}" if inputs else "the same settings and inputs"


def _changed(own: Mapping[str, Any], other: Mapping[str, Any], under: str = "") -> Iterator[str]:
    """`name VALUE, in use VALUE` of each setting with another value."""
    for name in dict.fromkeys([*own, *other]):
        a, b = own.get(name), other.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _changed(a, b, f"{under}{name}.")
        elif name == "stale":
            yield from ["with --allow-stale, in use without"] * (a is not None and b is None)
            yield from ["without --allow-stale, in use with it"] * (a is None and b is not None)
        elif a != b:
            yield f"{under}{name} {_shown(a)}, in use {_shown(b)}"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _read(file: Path) -> Json:
    """A JSON object; empty if the file is missing or damaged.

    Raises OSError where the system does not let it be read: what it names would look unused.
    """
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
