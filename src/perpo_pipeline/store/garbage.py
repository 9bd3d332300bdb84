"""Versions of a run that nothing refers to, for `perpo gc`: their size, and what they are of."""

import fcntl
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from perpo_pipeline.store.artifacts import (
    CURRENT,
    LOCK,
    MANIFEST,
    MERGED,
    MODEL,
    OPTIONS,
    STARTED,
    being_written,
)
from perpo_pipeline.store.current import is_current
from perpo_pipeline.store.in_use import (
    Lineage,
    current_in,
    folders_of,
    is_model,
    part_of,
    read_json_object,
    runs_beside,
    versions_in,
)
from perpo_pipeline.store.made_from import fingerprint_in, is_same_input

DAY_S = 86_400
SHOWN = 4  # settings named in a line


@dataclass(frozen=True)
class Unused:
    """A folder that nothing of its run refers to.

    `what` says how it differs from the version in use; `kept` why it is left for now, or is "";
    `holder` names another run that was made from it, or is "".
    """

    path: Path
    size: int  # bytes
    what: str
    kept: str
    holder: str = ""

    def remove(self) -> str:
        """Remove the folder with all that is in it; returns why it is left, or "".

        It is left if it has come into use, or a process writes it, since it was looked at.
        """
        with ExitStack() as stack:
            if (self.path / STARTED).is_file():
                lock = stack.enter_context((self.path / LOCK).open("a"))
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return "a process writes it now"
                if is_current(self.path):
                    return "it is in use now"
            shutil.rmtree(self.path)
        return ""


def find_unused(run_dir: Path, keep_days: float) -> list[Unused]:
    """Version directories under `run_dir` that no `current` file and no lineage of one refers to,
    in this run and in the others under its `data_root`: see `look_for_unused`."""
    return [one for one in look_for_unused(run_dir, keep_days) if not one.holder]


def look_for_unused(run_dir: Path, keep_days: float) -> list[Unused]:
    """As `find_unused`, and those to which only other runs refer, which `holder` names.

    A version that options asked for, one that is unfinished, and one beside which none is in use (a
    sweep makes its cells so) is kept for `keep_days` after it was last written, with what it was
    made from. A version that a process is writing is no
    candidate. Merged models are unused while no process is writing: stages make them again. Of a
    run that was made in rounds (`perpo iterate`) the rounds' own folders count as well; a round's
    merged model is in use as long as its adapter is.
    """
    folders, lineage = folders_of(run_dir), Lineage()
    found = {path for one in folders for path in versions_in(one)}
    written = {path for path in found if being_written(path)}
    used = lineage.follow([*(path for one in folders for path in current_in(one)), *written])
    holders, models = _held_by_others(run_dir, lineage)
    unused = [
        Unused(path, _size(path), _difference(path), _why_kept(path, keep_days))
        for path in sorted(found - lineage.reached)
    ]
    of_left = lineage.follow(one.path for one in unused if one.kept)
    unused = [
        replace(one, kept="what is left was made from it")
        if not one.kept and one.path in of_left
        else one
        for one in unused
    ]
    unused += [
        Unused(path, _size(path), _difference(path), "", holders[path])
        for path in sorted(found & holders.keys())
    ]
    if not written:
        unused += _merged_models(folders, used, models)
    return unused


def _held_by_others(run_dir: Path, lineage: Lineage) -> tuple[dict[Path, str], dict[str, str]]:
    """The versions to which other runs lead and the run itself does not, and the models that they
    were made with: the name of such a run by the folder, and by the name of the model.

    What another run has begun counts, too: its command goes on from there.
    """
    holders: dict[Path, str] = {}
    models: dict[str, str] = {}
    for name, folder in runs_beside(run_dir).items():
        begun = [path for path in versions_in(folder) if not (path / MANIFEST).is_file()]
        reached = lineage.follow([*current_in(folder), *begun])
        holders |= dict.fromkeys(reached, name)
        models |= dict.fromkeys(lineage.models_of(reached), name)
    return holders, models


def _merged_models(folders: list[Path], used: set[Path], names: Mapping[str, str]) -> list[Unused]:
    run_dir, *rounds = folders
    merged = sorted(path.resolve() for path in (run_dir / MERGED).glob("*") if path.is_dir())
    whats = dict.fromkeys(merged, "a merged model")
    adapters = {fingerprint_in(path.name) for path in used if path.parent.parent.name == "adapter"}
    models = (path.resolve() for one in rounds for path in sorted((one / MODEL).glob("*")))
    whats |= {
        path: "the merged model of an adapter that is not in use"
        for path in models
        if path.name not in adapters
    }
    holders = {
        path: next((run for name, run in names.items() if is_model(name, path, run_dir)), "")
        for path in whats
    }
    return [Unused(path, _size(path), what, "", holders[path]) for path, what in whats.items()]


def shown_size(size: int) -> str:
    """A number of bytes in words: `1.2 GB`."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


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
    options = part_of(read_json_object(path.parent / OPTIONS), path.name)
    options = options or part_of(read_json_object(path / MANIFEST), "options")
    asked = [option for kind in options for option in part_of(options, kind).values()]
    if asked:
        return f"{', '.join(map(str, asked))} asked for it"
    return "" if (path.parent / CURRENT).is_file() else "a sweep that is not finished may need it"


def _difference(path: Path) -> str:
    """How a version differs from the one in use, in its settings or its inputs."""
    own = read_json_object(path / MANIFEST) or read_json_object(path / STARTED)
    pointer = path.parent / CURRENT
    current = path.parent / pointer.read_text().strip() if pointer.is_file() else None
    if current is None:
        return "none is in use"
    other = read_json_object(current / MANIFEST)
    changed = list(_changed(part_of(own, "settings"), part_of(other, "settings")))
    if changed:
        return "; ".join([*changed[:SHOWN], *["..."] * (len(changed) > SHOWN)])
    read, now = part_of(own, "inputs"), part_of(other, "inputs")
    inputs = [
        str(part_of(read, name).get("artifact", name))
        for name in read
        if not is_same_input(part_of(read, name), part_of(now, name))
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
