"""What the configuration says about prompts, beside what their manifest records.

A reader records facts beside the source's settings, or in their place: the folder of the images,
the splits that were read, the question of the box format. What follows from the configuration is
compared. A file that was written after the prompts is another one, unless its hash is recorded and
still the same. Hashes are also compared where dates say nothing; never where all files are older.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from perpo_pipeline.answers.formats import get_box_format
from perpo_pipeline.config.folders import folders_below
from perpo_pipeline.config.pages import PagesSource, content_sha256
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.config.section import Json
from perpo_pipeline.config.sources import (
    SEVERAL,
    SPLIT_BY,
    PromptsSource,
    ReferSource,
    SeveralSources,
    TestbedSource,
    YoloSource,
    list_sources,
    source_files,
)
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store.artifacts import open_version
from perpo_pipeline.store.atomic import file_sha256
from perpo_pipeline.testbed import testbed_settings


def expected_source(config: RunConfig, split: str, recorded: Json) -> dict[str, tuple[str, Any]]:
    """By the name in the manifest: the setting's dotted key, and its value in the configuration."""
    source = config.prepare.get(split)
    if source is None:
        return {}
    key, wanted = f"prepare.{split}", len(list_sources(source))
    number: dict[str, tuple[str, Any]] = {"number": (key, wanted)}
    if flat_sources(recorded)["number"] != wanted:
        return number  # which source is which is not known, so nothing else is compared
    if not isinstance(source, SeveralSources):
        return number | _expected_of(config, split, source, key, recorded)
    found = number | {"source": (key, SEVERAL)}
    for index, (one, own) in enumerate(zip(source.of, recorded["of"], strict=True)):
        expected = _expected_of(config, split, one, f"{key}.{index}", own)
        found |= {f"of.{index}.{name}": value for name, value in expected.items()}
    return found


def flat_sources(recorded: Json) -> Json:
    """Settings of prompts, those of several sources under the names of `expected_source`."""
    if "of" not in recorded:
        return recorded | {"number": 1}
    found = {f"of.{i}.{name}": v for i, one in enumerate(recorded["of"]) for name, v in one.items()}
    return {**recorded, "number": len(recorded["of"]), **found}


def _expected_of(
    config: RunConfig, split: str, source: Any, key: str, recorded: Json
) -> dict[str, tuple[str, Any]]:
    """As `expected_source`, of one source whose settings are under `key`."""
    settings = {
        **dict.fromkeys(source.counted_where_set & recorded.keys()),
        **source.result_settings(),
    }
    found = {name: (f"{key}.{name}", value) for name, value in settings.items()}
    if isinstance(source, TestbedSource):
        facts = testbed_settings(config.seed, split, source.num_prompts, source.task)
        if "scene_seed" in recorded:
            found["scene_seed"] = ("seed", facts["scene_seed"])
        found["testbed_version"] = (f"prepare.{split}.source", facts["testbed_version"])
        return found
    if isinstance(source, ReferSource):
        found |= _of_refer(source, split, key, recorded)
    if isinstance(source, PromptsSource) and (now := _identity(source)) is not None:
        found["prompts"] = (f"{key}.path", now)
    if "image_root" in found and "image_root" in recorded:
        root = _image_root(source)
        if root is None or _has_moved(recorded["image_root"], root):
            del found["image_root"]
        else:
            found["image_root"] = (found["image_root"][0], str(root.resolve()))
    if recorded.get("instruction") is not None:
        question = get_box_format(config.model.box_format).instruction
        found["instruction"] = ("model.box_format", question)
    for name in ("box_format", "box_frame"):
        if name in recorded and name not in found:  # chats have settings of their own
            found[name] = (f"model.{name}", getattr(config.model, name))
    if "seed" in recorded:
        found["seed"] = ("seed", config.seed)
    return found


def _identity(source: PromptsSource) -> str | None:
    """What names the prompts that are there now; None if they cannot be read."""
    try:
        return open_version(source.path, "prompts").identity
    except ArtifactError:
        return None


def earlier_lists(path: Path) -> str | None:
    """What names the lists of `filter.earlier` that are there now; None if they cannot be read."""
    try:
        return open_version(path, "preferences").fingerprint
    except ArtifactError:
        return None


def _has_moved(recorded: str, root: Path) -> bool:
    """Whether a run with a relative folder of images was made at another place, not here."""
    parts = root.parts
    ends_alike = Path(recorded).parts[-len(parts) :] == parts if parts else True
    return not root.is_absolute() and ends_alike and not Path(recorded).exists()


def _image_root(source: Any) -> Path | None:
    """The folder that the reader takes; None for YOLO's, which its file may name."""
    if source.image_root is not None or isinstance(source, YoloSource):
        found: Path | None = source.image_root
        return found
    folder: Path = getattr(source, "folder", source.path.parent)
    return folder


def _of_refer(
    source: ReferSource, split: str, key: str, recorded: Json
) -> dict[str, tuple[str, Any]]:
    """The settings that stand for several values: `splits: null`, `leave_out_evaluated: true`."""
    named = recorded.get("split_by", {})
    against = recorded.get("leave_out_evaluated", [])
    wanted = source.leave_out_evaluated
    if wanted is True:  # of the datasets that are there; none unless `train` is read
        wanted = against or (True if "train" in recorded.get("splits", []) else [])
    elif wanted is False:
        wanted = []
    return {
        "splits": (f"{key}.splits", source.splits or [split]),
        "split_by": (
            f"{key}.split_by",
            {name: source.split_by.get(name, SPLIT_BY.get(name)) for name in named},
        ),
        "leave_out_evaluated": (f"{key}.leave_out_evaluated", wanted),
    }


def newer_files(config: RunConfig, split: str, made: Path, manifest: Json) -> list[Path]:
    """The source's files that were written after `made`, which names the prompts in use.

    Not those whose content is still the one that `manifest` records, where it records one. A date
    of writing may lie in the future (an archive of another time zone, another computer's clock):
    what the disk knows about the file's last change then counts.
    """
    source: Any = config.prepare.get(split)
    if source is None or not made.is_file():
        return []
    since = made.stat().st_mtime_ns
    return [
        file
        for one, settings, _ in _with_records(source, manifest)
        for file in _newer_of(one, since, settings)
    ]


def _newer_of(source: Any, since: int, settings: Json) -> list[Path]:
    """As `newer_files`, of one source; `since` is when the prompts came into use, in ns."""
    files = [file for file in source_files(source) if file.is_file()]
    newer = [file for file in files if _written_at(file) > since]
    if not newer:
        return []
    if isinstance(source, PagesSource):
        return newer if _other_pages(source, settings, None) else []
    hashes = settings.get("file_sha256")
    names = _names_of(files, source, hashes)
    return [file for file in newer if not _is_recorded(file, names[file], source, hashes)]


def _written_at(file: Path) -> int:
    """When a file was written, in ns: never later than its last change, which nobody can set."""
    found = file.stat()
    return min(found.st_mtime_ns, found.st_ctime_ns)


def _is_recorded(file: Path, name: str, source: Any, hashes: str | Json | None) -> bool:
    """Whether a hash of the file is recorded, and still its own; False for one without a hash."""
    if hashes is None or (isinstance(hashes, str) and file != source.path):
        return False
    return not _is_other(file, name, source, hashes)


def other_files(config: RunConfig, split: str, made: Path, manifest: Json) -> list[Path]:
    """The source's files with other content than `manifest` records of the prompts in use; its path
    where files are gone and others of it are there.

    Hashes are compared where the dates of the files (`newer_files`) say nothing: the configuration
    names another path than the one that was read, or a file was put there later with an earlier
    date of writing, as by `cp -p`, `mv` and `unzip`.
    """
    source: Any = config.prepare.get(split)
    if not made.is_file():
        return []
    since = made.stat().st_mtime_ns
    return [
        file
        for one, settings, path in _with_records(source, manifest)
        for file in _others_of(one, since, settings, path)
    ]


def _with_records(source: Any, manifest: Json) -> list[tuple[Any, Json, str | None]]:
    """Each source of a split with its settings, and the path that was read, as they are recorded.

    Not those whose number is beyond the sources that were read: that is a difference by itself.
    """
    settings, notes = manifest["settings"], manifest["notes"]
    if not isinstance(source, SeveralSources):
        return [(source, settings, notes.get("path"))]
    paths = notes.get("paths") or [None] * len(source.of)
    return list(zip(source.of, settings.get("of", []), paths, strict=False))


def _others_of(source: Any, since: int, settings: Json, path: str | None) -> list[Path]:
    """As `other_files`, of one source; `since` is when the prompts came into use, in ns."""
    hashes = settings.get("file_sha256")
    if isinstance(source, PagesSource):
        has_moved = Path(path or source.path) != source.path.resolve()
        return _other_pages(source, settings, None if has_moved else since)
    if hashes is None:
        return []
    read = Path(path or source.path)
    is_elsewhere = read != source.path.resolve()
    if is_elsewhere and read.exists() and (isinstance(source, YoloSource) or not _is_there(source)):
        return [source.path]
    files = [file for file in source_files(source) if file.is_file()]
    names = _names_of(files, source, hashes)
    others = [
        file
        for file, name in names.items()
        if (is_elsewhere or file.stat().st_ctime_ns >= since)  # equal: in one tick
        and _is_other(file, name, source, hashes)
    ]
    return others or [source.path] * _are_some_gone(names, source, hashes)


def _other_pages(source: PagesSource, recorded: Json, since: int | None) -> list[Path]:
    """The source's path, if its documents are others than those that were read.

    Documents come and go, so the dates of folders count as well; None compares in any case.
    """
    if not source.path.exists():
        return []
    documents = source.documents()
    places = {file for one in documents for file in one.files} | {source.path}
    places |= {folder for folder, _ in folders_below(source.path)}
    is_old = since is not None and all(place.stat().st_ctime_ns < since for place in places)
    if is_old or content_sha256(documents) == recorded.get("texts_sha256"):
        return []
    return [source.path]


def _is_there(source: Any) -> bool:
    return any(file.exists() for file in source_files(source))


def _are_some_gone(names: dict[Path, str], source: Any, recorded: str | Json) -> bool:
    """Whether files that were read are gone. Where none is there, the data are elsewhere."""
    if not names or isinstance(recorded, str):
        return False
    gone = recorded.keys() - set(names.values())
    if isinstance(source, ReferSource):  # its setting `split_by` may name other files now
        gone = {name for name in gone if not (source.path / name).is_file()}
    return bool(gone)


def _names_of(files: list[Path], source: Any, recorded: str | Json | None) -> dict[Path, str]:
    """The names by which readers record hashes: below the folder that all files have in common,
    wherever it is now; in REFER's, below `path`. No names where there is a single hash, or none.

    Where files are gone, the others may have a lower folder in common: the one above it with the
    most recorded names counts.
    """
    if not files or not isinstance(recorded, dict):
        return dict.fromkeys(files, "")
    if isinstance(source, ReferSource):
        return {file: os.path.relpath(file, source.path) for file in files}
    common = Path(os.path.commonpath([file.parent for file in files]))
    depth = max((len(Path(name).parts) for name in recorded), default=1)
    above = [common, *common.parents][:depth]
    named = [{file: str(file.relative_to(folder)) for file in files} for folder in reversed(above)]
    return max(named, key=lambda names: len(recorded.keys() & set(names.values())))


def _is_other(file: Path, name: str, source: Any, recorded: str | Json) -> bool:
    """Whether a file's hash is not the recorded one: of the source's own file, or by name."""
    if isinstance(recorded, str):
        return file == source.path and _sha256(file) != recorded
    if name not in recorded:  # REFER's folder has files of other datasets, too
        return not isinstance(source, ReferSource)
    return bool(recorded[name] != _sha256(file))


def _sha256(file: Path) -> str:
    """As `file_sha256`, once in a process for a file that does not change meanwhile."""
    found = file.stat()
    return _sha256_of(file, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@lru_cache(maxsize=1024)
def _sha256_of(file: Path, *_: int) -> str:
    return file_sha256(file)
