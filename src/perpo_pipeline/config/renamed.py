"""Settings that have another name now, and how long a file may still use the old one.

A file with an old name is read with a warning for two minor versions, from 1.0 on until the next
major version, and is then refused with the new name (docs/releasing.md). Names from before the
first release are refused.
"""

import copy
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from packaging.version import Version

from perpo_pipeline import __version__
from perpo_pipeline.config.section import Json
from perpo_pipeline.errors import ConfigError

FIRST_RELEASE = Version("0.1.0")
MINOR_VERSIONS = 2


@dataclass(frozen=True)
class Renamed:
    """The new key of a setting, in the same section, and the version that renamed it."""

    new: str
    since: str

    @property
    def refused_from(self) -> Version:
        """The version from which the old name is refused."""
        since = Version(self.since)
        if since <= FIRST_RELEASE:
            return since
        if since.major:
            return Version(f"{since.major + 1}.0.0")
        return Version(f"0.{since.minor + MINOR_VERSIONS}.0")


# Old key -> new key. A setting of `train` may also be a setting of one method; SPLIT is any split.
RENAMED: dict[str, Renamed] = {
    "train.max_tokens_per_step": Renamed("train.max_tokens_per_forward", since="0.1.0"),
    "eval.split": Renamed("eval.splits", since="0.1.0"),
    "prepare.SPLIT.gt_unit": Renamed("prepare.SPLIT.unit", since="0.1.0"),
}


def take_renamed(
    raw: Json, version: str = __version__, given: Collection[str] | None = None
) -> Json:
    """The settings of a file under today's names, with a warning for each that has an old one.

    Names that `version` refuses stay, for `config/faults.py` to name the new one. `given` are the
    keys that options have set: an option under an old name replaces the value of any other key.
    Raises ConfigError if a setting is given under both names.
    """
    taken = {old: to for old, to in RENAMED.items() if Version(version) < to.refused_from}
    read = copy.deepcopy(raw) if taken else raw
    for old, to in taken.items():
        for name, holder in _holders(read, old):
            own = 2 if old.startswith("prepare.SPLIT.") else 1  # parts of a key outside its holder
            old_key, new_key = old.split(".")[own:], to.new.split(".")[own:]
            before, now = ".".join([name, *old_key]), ".".join([name, *new_key])
            twice = "" if given and now not in given else f"{before} is the old name of {now}"
            if _move(holder, old_key, new_key, twice):
                _warn(before, now, to)
    return read


def _holders(raw: Json, old: str) -> Iterator[tuple[str, Json]]:
    """Each mapping of the file in which the key may stand, and its own key."""
    section = raw.get(old.split(".")[0])
    if not isinstance(section, dict):
        return
    if old.startswith("prepare.SPLIT."):
        for split, sources in section.items():
            several = isinstance(sources, list)
            for place, source in enumerate(sources if several else [sources]):
                if isinstance(source, dict):
                    yield f"prepare.{split}{f'.{place}' if several else ''}", source
        return
    yield old.split(".")[0], section
    methods = section.get("methods") if old.startswith("train.") else None
    for method, own in methods.items() if isinstance(methods, Mapping) else ():
        if isinstance(own, dict):
            yield f"train.methods.{method}", own


def _move(holder: Json, old: list[str], new: list[str], twice: str) -> bool:
    """Move a value to its new key; False without the old one, or without a place for the new.

    If the new key is there, it is an error that says `twice`, or is replaced if that is empty.
    """
    level: Any = holder
    for part in old[:-1]:
        level = level.get(part) if isinstance(level, dict) else None
    if not isinstance(level, dict) or old[-1] not in level:
        return False
    target: Any = holder
    for part in new[:-1]:
        target = target.setdefault(part, {}) if isinstance(target, dict) else None
    if not isinstance(target, dict):  # the reading of the file reports what is there instead
        return False
    if twice and new[-1] in target:
        raise ConfigError(f"{twice}, and both are given", fix="give the new name alone")
    target[new[-1]] = level.pop(old[-1])
    return True


_warned: set[str] = set()


def _warn(old: str, new: str, to: Renamed) -> None:
    """Say it once per process, and only in the first of several processes."""
    is_first_process = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
    if old not in _warned and is_first_process:
        print(
            f"perpo: {old} was renamed in {to.since}: write {new}; the old name is refused from "
            f"{to.refused_from} on",
            file=sys.stderr,
            flush=True,
        )
    _warned.add(old)


def forget_warned() -> None:
    """Begin a new command: what it warns of is printed once more."""
    _warned.clear()
