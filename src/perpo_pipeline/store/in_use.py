"""Which versions are in use: what the `current` files of a run, and of those beside it, lead to."""

import errno
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store.artifacts import CURRENT, MANIFEST, STARTED, follow_current
from perpo_pipeline.store.made_from import is_same_input
from perpo_pipeline.store.schemas import ALL

Json = dict[str, Any]
MODEL_NOTES = ("model_id", "reference_model_id")
NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}


class Lineage:
    """Follows versions to all that they were made from; reads each manifest once."""

    def __init__(self) -> None:
        self.reached: set[Path] = set()
        self._records: dict[Path, Json] = {}

    def follow(self, versions: Iterable[Path]) -> set[Path]:
        """These versions and what they lead to, as far as nothing has led there before.

        What a damaged manifest names that can be no path is passed over. Raises OSError where the
        system does not let a manifest be read.
        """
        new: set[Path] = set()
        frontier = list(versions)
        while frontier:
            path = _real_place(frontier.pop())
            if path is not None and path not in self.reached:
                self.reached.add(path)
                new.add(path)
                frontier += self._leads_to(path)
        return new

    def models_of(self, versions: Iterable[Path]) -> set[str]:
        """The models that these versions were made with, as the settings named them; the reference
        models of trainings, too."""
        notes = (part_of(self._record(path), "notes") for path in versions)
        names = (note.get(name) for note in notes for name in MODEL_NOTES)
        return {name for name in names if isinstance(name, str) and name}

    def _record(self, version: Path) -> Json:
        if version not in self._records:
            read = read_json_object(version / MANIFEST) or read_json_object(version / STARTED)
            self._records[version] = read
        return self._records[version]

    def _leads_to(self, version: Path) -> Iterator[Path]:
        inputs = part_of(self._record(version), "inputs")
        places = [one.get("path") for one in inputs.values() if isinstance(one, dict)]
        yield from (version / place for place in places if isinstance(place, str))
        yield from self._prompts_read(version)
        if version.parent.parent.name == "adapter":
            yield from self._references_of(version)

    def _prompts_read(self, version: Path) -> Iterator[Path]:
        """The prompts that the source `prompts` took, which are no input: their content counts."""
        record = self._record(version)
        settings, notes = part_of(record, "settings"), part_of(record, "notes")
        several = zip(_list(settings, "of"), _list(notes, "paths"), strict=False)
        for source, place in [(settings, notes.get("path")), *several]:
            is_prompts = isinstance(source, dict) and source.get("source") == "prompts"
            if is_prompts and isinstance(place, str) and os.path.isfile(Path(place) / STARTED):
                yield Path(place)

    def _references_of(self, adapter: Path) -> Iterator[Path]:
        """The reference log-probabilities of the lists that an adapter was trained on.

        The adapter does not name them, and another training on these lists would need them.
        """
        own = self._record(adapter)
        lists = part_of(part_of(own, "inputs"), "preferences")
        models = [part_of(own, "settings").get(name) for name in ("model", "reference_model")]
        for file in (adapter.parents[2] / "reference").glob(f"*/*/{MANIFEST}"):
            other = self._record(file.parent.resolve())
            read = part_of(part_of(other, "inputs"), "preferences")
            if is_same_input(read, lists) and part_of(other, "settings").get("model") in models:
                yield file.parent


def folders_of(run_dir: Path) -> list[Path]:
    """The folder of a run, and those of its rounds: each has artifacts of its own."""
    return [run_dir, *sorted({file.parents[2] for file in run_dir.glob(f"*/*/*/{CURRENT}")})]


def versions_in(folder: Path) -> set[Path]:
    """All versions of a run without its rounds', finished or begun."""
    return {file.parent.resolve() for file in folder.glob(f"*/*/*/{STARTED}")}


def current_in(folder: Path) -> list[Path]:
    """The versions that `current` files name; where one is damaged, every version beside it.

    A file of this name in a folder of another kind leads nowhere. Raises OSError where the system
    does not let one be read.
    """
    found: list[Path] = []
    for pointer in sorted(folder.glob(f"*/*/{CURRENT}")):
        try:
            found.append(follow_current(pointer.parent))
        except (ArtifactError, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NOT_THERE:
                raise
            found += [file.parent for file in pointer.parent.glob(f"*/{STARTED}")]
    return found


def runs_beside(run_dir: Path) -> dict[str, Path]:
    """The other runs under the same `data_root`, and their rounds, by their names there.

    For a round they are also the run that it belongs to, its other rounds, and the runs beside.
    """
    own = {folder.resolve() for folder in folders_of(run_dir)}
    root = run_dir.resolve().parent
    while any(file.parents[1].name in ALL for file in root.glob(f"*/*/{CURRENT}")):
        root = root.parent
    runs = sorted(path for path in root.glob("*") if path.is_dir())
    folders = (folder for run in runs for folder in folders_of(run))
    return {str(one.relative_to(root)): one for one in folders if one.resolve() not in own}


def is_model(name: str, model: Path, run_dir: Path) -> bool:
    """Whether the model that a version names is this folder of the run in `run_dir`.

    A relative name starts at the folder in which that command ran, which no manifest has: it is
    looked for from here and from each folder above the run. Where it is in none of them, it is
    every model whose path ends with it.
    """
    place = Path(os.path.expanduser(name))
    above = [Path.cwd(), *run_dir.absolute().parents, *run_dir.resolve().parents]
    found = {_real_place(one / place) for one in above if os.path.exists(one / place)}
    if found or place.is_absolute():
        return model in found
    end = tuple(part for part in place.parts if part != "..")
    return model.parts[-len(end) :] == end


def read_json_object(file: Path) -> Json:
    """A JSON object; empty if the file is missing or damaged.

    Raises OSError where the system does not let it be read: what it names would look unused.
    """
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    except OSError as error:
        if error.errno not in NOT_THERE:
            raise
        return {}
    return read if isinstance(read, dict) else {}


def part_of(record: Json, name: str) -> Json:
    """An object in a JSON object; empty if there is none, or something else of that name."""
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def _list(record: Json, name: str) -> list[Any]:
    found = record.get(name)
    return found if isinstance(found, list) else []


def _real_place(path: Path) -> Path | None:
    """The path without links; None for what can be none, such as one with a NUL in it."""
    try:
        return Path(os.path.realpath(path))
    except ValueError:
        return None
