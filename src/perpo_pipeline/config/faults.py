"""What is wrong with a run's settings: each fault by its key, and the option that gave it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError

from perpo_pipeline.answers.settings import TAG_PATTERN
from perpo_pipeline.config.by_task import BY_TASK, ONE
from perpo_pipeline.config.overrides import Place, Placed
from perpo_pipeline.config.renamed import RENAMED
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.config.section import NAME_PATTERN, WORD_PATTERN, Json, Section
from perpo_pipeline.config.sources import SEVERAL, SOURCE_MODELS, SOURCE_NAMES
from perpo_pipeline.config.train import LoraSettings, TrainSettings
from perpo_pipeline.suggestions import did_you_mean


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: the key in the file, the text after the key, and how to join them.

    `settings` names the settings under `place` that do not fit together, if they are known.
    """

    place: Place
    what: str
    joint: str = ": "
    missing: bool = False
    settings: Sequence[str] | None = None

    def line(self, options: Sequence[str]) -> str:
        """The fault in words, with the options that caused it."""
        key, given = ".".join(self.place), f" ({', '.join(options)})" if options else ""
        if self.missing:
            return f"{key}{self.joint}{self.what}{given}"
        return f"{key}{given}{self.joint}{self.what}"


def find_options(fault: Fault, placed: Sequence[Placed]) -> list[str]:
    """The command line's options that caused a fault: what gave its key, or settings below it."""
    above = [p for p in placed if fault.place[: len(p.place)] == p.place]
    if above and fault.missing:
        return [_option_for(fault.place)]
    if above:
        return [above[-1].override.option]
    below = [p for p in placed if p.place[: len(fault.place)] == fault.place]
    if fault.settings is not None:
        below = [p for p in below if ".".join(p.place[len(fault.place) :]) in fault.settings]
    elif fault.missing:
        below = []
    found = [p.override.named_by or p.override.option for p in below]
    return list(dict.fromkeys(found))


# Arguments and options of `perpo prepare` for its required settings.
_OPTIONS = {"path": "PATH", "image_root": "--image-root"}


def _option_for(place: Place) -> str:
    """The option that would give a missing setting."""
    own = _OPTIONS.get(place[-1]) if place[0] == "prepare" else None
    return own or f"--set {'.'.join(place)}=VALUE"


def explain(error: ValidationError, raw: Json) -> Iterator[Fault]:
    """Each fault that pydantic found, under its key as the file has it."""
    for found in error.errors(include_url=False):
        where = tuple(str(part) for part in found["loc"] if part != "[key]")
        where = _without_several(where)
        place = tuple(p for i, p in enumerate(where) if (where[0], i, p) not in _NOT_IN_THE_FILE)
        several = found.get("ctx", {}).get("faults")
        if several is None:
            yield _explain(found, place, raw)
        for key, what in several or ():
            yield Fault(tuple(key.split(".")), what)


# Steps in pydantic's locations that are not keys of the file: (section, position, name).
_NOT_IN_THE_FILE = {
    ("train", 1, "shared"),
    *(("prepare", 2, name) for name in SOURCE_NAMES),
    *((section, 2, step) for section in ("sample", "filter", "eval") for step in (ONE, BY_TASK)),
}


def _without_several(where: Place) -> Place:
    """A location in a list of sources by the entry's number: `prepare.train.0.num_prompts`."""
    if where[:1] != ("prepare",) or where[2:4] != (SEVERAL, "of"):
        return where
    named = where[5:6] and where[5] in SOURCE_NAMES
    return (*where[:2], *where[4:5], *where[6 if named else 5 :])


def _source_at(place: Place, raw: Json) -> tuple[Any, Place]:
    """The source of a split that `place` points into, as the file has it, and the place in it."""
    found, rest = raw["prepare"][place[1]], place[2:]
    if isinstance(found, list) and len(found) == 1:
        return found[0], rest
    if isinstance(found, list) and rest and rest[0].isdecimal():
        return found[int(rest[0])], rest[1:]
    return found, rest


def _explain(found: Any, place: Place, raw: Json) -> Fault:
    kind, got = found["type"], found["input"]
    if kind == "extra_forbidden" and (new := _new_key(place)):
        return Fault(place, f"was renamed: use {new}", joint=" ")
    if kind == "extra_forbidden":
        return Fault(place, _unknown_setting(place, raw))
    if kind == "missing":
        return Fault(place, "is required", missing=True)
    if kind == "string_pattern_mismatch" and (rule := _PATTERNS.get(found["ctx"]["pattern"])):
        return Fault(place, f"{rule}; {got!r} does not fit")
    if kind.startswith("union_tag"):
        return Fault(place, _no_source(got, place, raw))
    if kind in ("model_type", "model_attributes_type"):
        return Fault(place, f"this is a section of settings, not a value (got {got!r})")
    shown = f" (got {got!r})" if isinstance(got, str | int | float | bool) else ""
    if kind == "literal_error":
        shown += did_you_mean(str(got), re.findall(r"'([^']*)'", found["ctx"]["expected"]))
    what = found["msg"].removeprefix("Value error, ")
    return Fault(place, f"{what}{shown}", settings=found.get("ctx", {}).get("settings"))


def _new_key(place: Place) -> str | None:
    """The new name of a renamed setting, in the same place."""
    if place[0] == "prepare" and len(place) > 2:
        found = RENAMED.get(f"prepare.SPLIT.{place[-1]}")
        return found.new.replace("SPLIT", ".".join(place[1:-1])) if found else None
    in_method = place[:2] == ("train", "methods") and len(place) > 3
    section = ("train", *place[3:]) if in_method else place
    found = RENAMED.get(".".join(section))
    if found is None or not in_method:
        return None if found is None else found.new
    return ".".join([*place[:3], found.new.removeprefix("train.")])


_PATTERNS = {
    NAME_PATTERN: "a name has letters, digits, '.', '_' and '-', and begins with a letter or digit",
    WORD_PATTERN: "this must be one word without blanks",
    TAG_PATTERN: "the tag is its name alone, such as answer for <answer>: letters, digits, '_', "
    "':' and '-', and a letter first; null for no tag",
}


def _no_source(got: Any, place: Place, raw: Json) -> str:
    """A split that names no source, or an unknown one."""
    known = f"one of {', '.join(SOURCE_NAMES)}"
    found = got.get("source") if isinstance(got, dict) else None
    if found is None:
        others = [name for name in raw["prepare"] if name != place[-1]]
        return f"names no source; {known}{did_you_mean(place[-1], others)}"
    near = did_you_mean(str(found), SOURCE_NAMES)
    return f"there is no source {str(found)!r}{near}{' ' if near else '; '}{known}"


def _unknown_setting(place: Place, raw: Json) -> str:
    """A setting that does not exist, or not for this source of prompts."""
    names = _names_beside(place, raw)
    others = {name for model in SOURCE_MODELS for name in model.model_fields}
    if place[0] == "prepare" and place[-1] in others:
        source, _ = _source_at(place, raw)
        return f"source {source['source']} has no such setting; it has " + ", ".join(
            name for name in names if name != "source"
        )
    if len(place) == 1 and (full := _full_key(place[0])):
        return f"no such setting; did you mean '{full}'?"
    return f"no such setting{did_you_mean(place[-1], names)}"


def _full_key(name: str) -> str | None:
    """The dotted key of a setting that was given without its section."""
    for section, field in RunConfig.model_fields.items():
        kind = TrainSettings if section == "train" else field.annotation
        if isinstance(kind, type(Section)) and name in kind.model_fields:
            return f"{section}.{name}"
    return None


def _names_beside(place: Place, raw: Json) -> list[str]:
    """The settings that exist where `place` points."""
    if len(place) == 1:
        return list(RunConfig.model_fields)
    if place[-2] == "lora":
        return list(LoraSettings.model_fields)
    if place[0] == "prepare":
        source = _source_at(place, raw)[0]["source"]
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
