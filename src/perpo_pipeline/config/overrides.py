"""Settings that the command line gives: they replace those of the run's file."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import yaml

from perpo_pipeline.config.section import Json
from perpo_pipeline.config.unique_keys import load_yaml
from perpo_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from perpo_pipeline.config.run import RunConfig

Place = tuple[str, ...]
Key = str | Place


@dataclass(frozen=True)
class Override:
    """One setting from the command line: its key, its value, and the option as the user typed it.

    A key is dotted, or a tuple of its parts where these may hold dots. `named_by` is the option
    that named the entry which holds the setting, e.g. `--split` for `prepare.SPLIT.path`.
    """

    key: Key
    value: Any
    option: str
    named_by: str | None = None

    @property
    def dotted(self) -> str:
        """The key as text."""
        return self.key if isinstance(self.key, str) else ".".join(self.key)

    @property
    def as_typed(self) -> str:
        """The option with its value, as the user typed it."""
        if self.option.startswith("--set"):
            return self.option
        if isinstance(self.value, Mapping):  # a whole source of prompts
            return f"SOURCE {self.value.get('source')}"
        return f"{self.option} {self.value}"


@dataclass(frozen=True)
class Placed:
    """An override whose key is resolved to a place in the file."""

    place: Place
    override: Override


def parse_set(text: str) -> Override:
    """Read the `section.key=value` of one `--set`; the value is YAML. Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not key.strip() or not equals:
        raise ConfigError(
            f"--set {text}: this is not section.key=value",
            fix="name the setting and its value, e.g. --set filter.min_margin=0.4",
        )
    try:
        read = load_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {text}: the value cannot be read as YAML: {error}",
            fix="write the value as in the run's file; quote it for the shell",
        ) from error
    return Override(key.strip(), read, f"--set {text}")


def overrides_of(settings: Mapping[Key, Any]) -> list[Override]:
    """Overrides for settings given in Python, each named as the `--set` that it equals."""
    return [
        Override(key, value, f"--set {key if isinstance(key, str) else '.'.join(key)}={value}")
        for key, value in settings.items()
    ]


def apply_overrides(raw: Json, overrides: Iterable[Override]) -> list[Placed]:
    """Write the overrides into `raw`, in their order; returns where each one went.

    Raises ConfigError if one setting is given twice.
    """
    placed: list[Placed] = []
    for override in overrides:
        place = _find_place(raw, override.key)
        for earlier in placed:
            if earlier.place[: len(place)] == place:
                raise ConfigError(
                    f"{'.'.join(place)} is given twice: {earlier.override.option} and "
                    f"{override.option}",
                    fix="give it once",
                )
        _set_value(raw, place, override.value)
        placed.append(Placed(place, override))
    return placed


def shared_training_settings(overrides: Iterable[Override]) -> Iterator[tuple[Place, Override]]:
    """The overrides of settings that all methods share, by the parts of the key after `train.`."""
    for override in overrides:
        key = override.key
        parts = tuple(key.split(".")) if isinstance(key, str) else key
        if len(parts) > 1 and parts[0] == "train" and parts[1] not in ("methods", "seeds"):
            yield parts[1:], override


def refuse_without_effect(config: "RunConfig", overrides: Iterable[Override]) -> None:
    """Raise ConfigError for a shared training setting if every method that uses it has its own."""
    for path, override in shared_training_settings(overrides):
        shared, own = config.train.methods_that_take(path)
        if own and not shared:
            key = ".".join(path)
            raise ConfigError(
                f"{override.option} changes nothing: {', '.join(own)} each set their own {key}",
                fix=f"set it for one method: --set train.methods.{own[0]}.{key}={override.value}",
            )


def _find_place(raw: Json, key: Key) -> Place:
    """The parts of a dotted key; names in the file that hold dots themselves are kept whole."""
    if not isinstance(key, str):
        return key
    parts: list[str] = []
    rest, level = key.split("."), cast(Any, raw)
    while rest:
        if isinstance(level, list) and rest[0].isdecimal() and int(rest[0]) < len(level):
            level = level[int(rest[0])]
            parts.append(rest.pop(0))
            continue
        lengths = range(len(rest), 1, -1) if isinstance(level, Mapping) else ()
        length = next((n for n in lengths if ".".join(rest[:n]) in level), 1)
        part, rest = ".".join(rest[:length]), rest[length:]
        parts.append(part)
        level = level.get(part) if isinstance(level, Mapping) else None
    return tuple(parts)


def _set_value(raw: Any, place: Sequence[str], value: Any) -> None:
    *parents, last = place
    for depth, key in enumerate(parents, start=1):
        found = raw[int(key)] if isinstance(raw, list) else raw.setdefault(key, None)
        if found is None and isinstance(raw, dict):
            found = raw[key] = {}
        follows = place[depth]
        is_entry = isinstance(found, list) and follows.isdecimal() and int(follows) < len(found)
        if not isinstance(found, dict) and not is_entry:
            whole = ".".join(parents[:depth])
            raise ConfigError(
                f"{'.'.join(place)}: {whole} is {found!r} in the file, "
                + (f"a list of {len(found)}" if isinstance(found, list) else "which has no keys"),
                fix=f"give the whole of it: --set {whole}=VALUE"
                + (f", or one entry: --set {whole}.0.KEY=VALUE" if isinstance(found, list) else ""),
            )
        raw = found
    if isinstance(raw, list):
        raw[int(last)] = value
    else:
        raw[last] = value
