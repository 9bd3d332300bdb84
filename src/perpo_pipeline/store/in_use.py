"""Which versions are in use: what the `current` files of a run, and of those beside it, lead to."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store.artifacts import CURRENT, MANIFEST, STARTED, follow_current
from perpo_pipeline.store.made_from import is_same_input
from perpo_pipeline.store.schemas import ALL

Json = dict[str, Any]


class Lineage:
    """Follows versions to all that they were made from; reads each manifest once."""

    def __init__(self) -> None:
        self.reached: set[Path] = set()
        self._records: dict[Path, Json] = {}

    def follow(self, versions: Iterable[Path]) -> set[Path]:
        """These versions and what they lead to, as far as nothing has led there before.

        Raises OSError where the system does not let a manifest be read.
        """
        new: set[Path] = set()
        frontier = list(versions)
        while frontier:
            path = frontier.pop().resolve()
            if path not in self.reached:
                self.reached.add(path)
                new.add(path)
                frontier += self._leads_to(path)
        return new

    def models_of(self, versions: Iterable[Path]) -> set[Path]:
        """The local models that these versions were made with, such as another run's merged one."""
        notes = (_part(self._record(path), "notes") for path in versions)
        names = {note["model_id"] for note in notes if isinstance(note.get("model_id"), str)}
        return {Path(name).resolve() for name in names if name}

    def _record(self, version: Path) -> Json:
        if version not in self._records:
            read = read_json_object(version / MANIFEST) or read_json_object(version / STARTED)
            self._records[version] = read
        return self._records[version]

    def _leads_to(self, version: Path) -> Iterator[Path]:
        inputs = _part(self._record(version), "inputs")
        places = [one.get("path") for one in inputs.values() if isinstance(one, dict)]
        yield from (version / place for place in places if isinstance(place, str))
        yield from self._prompts_read(version)
        if version.parent.parent.name == "adapter":
            yield from self._references_of(version)

    def _prompts_read(self, version: Path) -> Iterator[Path]:
        """The prompts that the source `prompts` took, which are no input: their content counts."""
        record = self._record(version)
        settings, notes = _part(record, "settings"), _part(record, "notes")
        several = zip(settings.get("of", ()), notes.get("paths", ()), strict=False)
        for source, place in [(settings, notes.get("path")), *several]:
            if source.get("source") == "prompts" and isinstance(place, str):
                yield from [Path(place)] * (Path(place) / STARTED).is_file()

    def _references_of(self, adapter: Path) -> Iterator[Path]:
        """The reference log-probabilities of the lists that an adapter was trained on.

        The adapter does not name them, and another training on these lists would need them.
        """
        own = self._record(adapter)
        lists = _part(own, "inputs").get("preferences", {})
        models = {_part(own, "settings").get(name) for name in ("model", "reference_model")}
        for file in (adapter.parents[2] / "reference").glob(f"*/*/{MANIFEST}"):
            other = self._record(file.parent.resolve())
            read = _part(other, "inputs").get("preferences", {})
            if is_same_input(read, lists) and _part(other, "settings").get("model") in models:
                yield file.parent


def folders_of(run_dir: Path) -> list[Path]:
    """The folder of a run, and those of its rounds: each has artifacts of its own."""
    return [run_dir, *sorted({file.parents[2] for file in run_dir.glob(f"*/*/*/{CURRENT}")})]


def versions_in(folder: Path) -> set[Path]:
    """All versions of a run without its rounds', finished or begun."""
    return {file.parent.resolve() for file in folder.glob(f"*/*/*/{STARTED}")}


def current_in(folder: Path) -> list[Path]:
    """The versions that `current` files name; where one is damaged, every version beside it."""
    found: list[Path] = []
    for pointer in sorted(folder.glob(f"*/*/{CURRENT}")):
        try:
            found.append(follow_current(pointer.parent))
        except ArtifactError:
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


def read_json_object(file: Path) -> Json:
    """A JSON object; empty if the file is missing or damaged.

    Raises OSError where the system does not let it be read: what it names would look unused.
    """
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def _part(record: Json, name: str) -> Json:
    found = record.get(name)
    return found if isinstance(found, dict) else {}
