"""Reading a run's YAML file: under the flags that were given, with every fault told at once."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from perpo_pipeline.config.run import RunConfig, unprepared
from perpo_pipeline.config.section import NAME_PATTERN, WORD_PATTERN, Json, Section
from perpo_pipeline.config.sources import SOURCE_MODELS, SOURCE_NAMES
from perpo_pipeline.config.train import LoraSettings, TrainSettings
from perpo_pipeline.errors import ConfigError

Place = tuple[str, ...]
Key = str | Place
REQUIRED = "is required"


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, which YAML would silently overwrite."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> Json:
    seen: set[str] = set()
    for key_node, _ in node.value:
        key = str(loader.construct_object(key_node))
        if key in seen:
            raise yaml.MarkedYAMLError(
                problem=f"the key '{key}' is given twice", problem_mark=key_node.start_mark
            )
        seen.add(key)
    return {str(key): value for key, value in loader.construct_mapping(node, deep=True).items()}


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def load_config(path: Path, overrides: Mapping[Key, Any] | None = None) -> RunConfig:
    """Load a run's YAML file; `overrides` maps keys to values that flags gave.

    A key is dotted, or a tuple of its parts where these may hold dots. Raises `ConfigError` with
    every fault, each by its key, and the flag if one gave it.
    """
    given = {_parts(key): value for key, value in (overrides or {}).items()}
    raw = _read_yaml(path)
    for parts, value in given.items():
        _set_value(raw, parts, value)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        faults = list(_explain(error, raw))
        if not any("is not a split of" in what for _, what in faults):
            faults += [((), what) for what in unprepared(*_raw_splits(raw))]
    flags = [_flags(place, what, given) for place, what in faults]
    lines = [
        f"  - {_line(place, what, found)}"
        for (place, what), found in zip(faults, flags, strict=True)
    ]
    all_flags = dict.fromkeys(flag for found in flags for flag in found)
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    raise ConfigError(
        f"{count} in the configuration:\n" + "\n".join(lines),
        where=", ".join(all_flags) if all(flags) else str(path),
        fix="correct these settings; `perpo settings` lists every one",
    )


def _line(place: Place, what: str, flags: list[str]) -> str:
    """A fault under its key, with its flags; one of the whole file names its own keys."""
    if not place:
        return what
    key, by = ".".join(place), f" ({', '.join(flags)})" if flags else ""
    return f"{key}: {what}{by}" if what == REQUIRED else f"{key}{by}: {what}"


# Settings whose flag, or argument, has another name.
_FLAGS = {
    "id": "--model",
    "path": "PATH",
    "source": "SOURCE",
    "leave_out_evaluated": "--keep-evaluated",
}
_NAMED_BY_VARIANT = {("prepare", 2), ("train", 3)}  # (section, length of a place that is a name)


def _flags(place: Place, what: str, given: Mapping[Place, Any]) -> list[str]:
    """The flags that a fault is of: the one that gave its key, or those that its text names."""
    found = []
    for parts, value in given.items():
        if place[: len(parts)] == parts:
            found.append(_flag(place, parts, value))
        elif place and parts[: len(place)] == place:
            if re.search(rf"\b{re.escape(parts[-1])}\b", what):
                found.append(_flag(parts, parts, value))
            elif (place[0], len(place)) in _NAMED_BY_VARIANT:
                found.append("--variant")
    return list(dict.fromkeys(found))


def _flag(place: Place, parts: Place, value: Any) -> str:
    """The flag that gave `parts`, or the part at `place` of what it gave."""
    name = parts[-1]
    if parts[0] == "prepare" and isinstance(value, dict) and len(parts) == 2:
        if len(place) == 2:
            return "--variant"
        name = place[2]
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def _parts(key: Key) -> Place:
    return tuple(key.split(".")) if isinstance(key, str) else key


def _read_yaml(path: Path) -> Json:
    try:
        text = path.read_text(encoding="utf-8")
        raw = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.stem, [p.stem for p in path.parent.glob("*.yaml")])
        raise ConfigError(
            "no such configuration file",
            where=str(path),
            fix=f"did you mean {path.with_stem(near[0])}?" if near else "see the folder configs/",
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"the file cannot be read as YAML: {error}", where=str(path), fix="correct the file"
        ) from error
    if not isinstance(raw, dict):
        raise ConfigError(
            "the file holds no mapping of sections", where=str(path), fix="see configs/demo.yaml"
        )
    return raw


def _raw_splits(raw: Json) -> tuple[Json, list[str]]:
    """Splits named and prepared in a file that has faults elsewhere."""
    prepare = raw.get("prepare")
    named = {
        f"{section}.split": raw[section]["split"]
        for section in ("sample", "eval")
        if isinstance(raw.get(section), dict) and "split" in raw[section]
    }
    return (named, list(prepare)) if isinstance(prepare, dict) else ({}, [])


def _set_value(raw: Json, parts: Place, value: Any) -> None:
    *parents, last = parts
    for key in parents:
        if not isinstance(raw.get(key), dict):
            raw[key] = {}
        raw = raw[key]
    raw[last] = value


def _explain(error: ValidationError, raw: Json) -> Iterator[tuple[Place, str]]:
    """Each fault: its key as it stands in the file, and what is wrong there."""
    for fault in error.errors(include_url=False):
        where = tuple(str(part) for part in fault["loc"] if part != "[key]")
        place = tuple(p for i, p in enumerate(where) if (where[0], i, p) not in _NOT_IN_THE_FILE)
        yield place, _what(fault, place, raw)


def _what(fault: Any, place: Place, raw: Json) -> str:
    kind, got = fault["type"], fault["input"]
    if kind == "extra_forbidden":
        return _unknown_setting(place, raw)
    if kind == "missing":
        return REQUIRED
    if kind == "string_pattern_mismatch":
        return f"{_PATTERNS[fault['ctx']['pattern']]}; {got!r} does not fit"
    if kind.startswith("union_tag"):
        return _no_source(got.get("source") if isinstance(got, dict) else None)
    shown = f" (got {got!r})" if isinstance(got, str | int | float | bool) else ""
    return f"{fault['msg'].removeprefix('Value error, ')}{shown}"


# Steps of pydantic's locations that are no keys of the file: (section, position, name).
_NOT_IN_THE_FILE = {("train", 1, "shared"), *(("prepare", 2, name) for name in SOURCE_NAMES)}


_PATTERNS = {
    NAME_PATTERN: "a name has letters, digits, '.', '_' and '-', and begins with a letter or digit",
    WORD_PATTERN: "this is a word without blanks",
}


def _no_source(found: Any) -> str:
    """A split that names no source, or none that there is."""
    known = f"one of {', '.join(SOURCE_NAMES)}"
    if found is None:
        return f"names no source; {known}"
    near = _near(str(found), SOURCE_NAMES)
    return f"there is no source {str(found)!r}{near}{' ' if near else '; '}{known}"


def _unknown_setting(place: Place, raw: Json) -> str:
    """A setting that there is not, or not for this source of prompts."""
    names = _names_beside(place, raw)
    others = {name for model in SOURCE_MODELS for name in model.model_fields}
    if place[0] == "prepare" and len(place) == 3 and place[-1] in others:
        return (
            f"source {raw['prepare'][place[1]]['source']} has no such setting; it has "
            + ", ".join(name for name in names if name != "source")
        )
    return f"no such setting{_near(place[-1], names)}"


def _near(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _names_beside(place: Place, raw: Json) -> list[str]:
    """The settings that exist where `place` points."""
    if len(place) == 1:
        return list(RunConfig.model_fields)
    if place[-2] == "lora":
        return list(LoraSettings.model_fields)
    if place[0] == "prepare":
        source = raw["prepare"][place[1]]["source"]
        return [
            name
            for model in SOURCE_MODELS
            for name in model.model_fields
            if source in get_args(model.model_fields["source"].annotation)
        ]
    if place[0] == "train":
        return [*TrainSettings.model_fields, "methods", "seeds"]
    section = RunConfig.model_fields[place[0]].annotation
    return list(section.model_fields) if isinstance(section, type(Section)) else []
