"""Settings that have another name now, and how long a file may still use the old one.

A file with an old name is read with a warning for two minor versions, from 1.0 on until the next
major version, and is then refused with the new name (docs/releasing.md). Names from before the
first release are refused.
"""

import copy
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from packaging.version import Version

from perpo_pipeline import __version__
from perpo_pipeline.config.overrides import Override
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


def take_renamed(raw: Json, version: str = __version__) -> Json:
    """The settings of a file under today's names, with a warning for each that has an old one.

    Names that `version` refuses stay, for `config/faults.py` to name the new one. Raises
    ConfigError if a setting is given under both names.
    """
    taken = _taken(version)
    read = copy.deepcopy(raw) if taken else raw
    for old, to in taken.items():
        for name, holder in _holders(read, old):
            old_key, new_key = _in_holder(old), _in_holder(to.new)
            before, now = ".".join([name, *old_key]), ".".join([name, *new_key])
            if _move(holder, old_key, new_key, f"{before} is the old name of {now}"):
                _warn(before, now, to)
    return read


def take_renamed_option(option: Override, version: str = __version__) -> Override:
    """An option under today's name of its setting, with a warning if it has an old one."""
    parts = option.key.split(".") if isinstance(option.key, str) else list(option.key)
    for old, to in _taken(version).items():
        old_key = _in_holder(old)
        holder = parts[: -len(old_key)]
        if parts[len(holder) :] == old_key and _may_hold(holder, old):
            now = [*holder, *_in_holder(to.new)]
            _warn(option.dotted, ".".join(now), to)
            return replace(option, key=".".join(now) if isinstance(option.key, str) else tuple(now))
    return option


def _taken(version: str) -> dict[str, Renamed]:
    return {old: to for old, to in RENAMED.items() if Version(version) < to.refused_from}


def _in_holder(key: str) -> list[str]:
    """The parts of a key of RENAMED within its section, or within one source of a split."""
    return key.split(".")[2 if key.startswith("prepare.SPLIT.") else 1 :]


def _may_hold(holder: list[str], old: str) -> bool:
    """Whether `holder` is where the setting may stand: see `_holders`."""
    section = old.split(".")[0]
    if section == "prepare":
        return holder[:1] == ["prepare"] and len(holder) > 1
    in_method = section == "train" and holder[:2] == ["train", "methods"] and len(holder) == 3
    return holder == [section] or in_method


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


def _move(holder: Json, old: list[str], new: list[str], relation: str) -> bool:
    """Move a value to its new key; False without the old one, or without a place for the new."""
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
    if new[-1] in target:
        raise ConfigError(f"{relation}, and both are given", fix="give the new name alone")
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
