"""The reference of settings, as Markdown made from the pydantic models.

`perpo settings` prints it, and the manual shows it as a page.
"""

import types
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from perpo_pipeline.config.by_task import Task
from perpo_pipeline.config.fingerprints import counts_in
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.config.section import NAME_PATTERN, WORD_PATTERN, Section
from perpo_pipeline.config.sources import SOURCE_MODELS
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.suggestions import did_you_mean

TOP = "run"
SECTIONS = (
    TOP,
    *(name for name in RunConfig.model_fields if name not in {TOP, "seed", "data_root"}),
)
INTRODUCTION = """\
# Settings

The settings of a run are in one YAML file. The names below are paths in that file, and what `--set`
accepts: `--set train.lora.rank=8`. Write your own name for a part in capitals:
`prepare.SPLIT.path` becomes `prepare.train.path`. None is written `null`.

A setting that counts in the fingerprint of an artifact changes its content, so a new value makes a
new version of it. The other settings change speed, memory or which part of the work is done.
"""
_OF_SECTION = {
    "prepare": [
        "A split has one source, or a list of sources, whose prompts follow each other; the "
        "settings of an entry are `prepare.SPLIT.0.path` and so on.\n"
    ]
}
_SET_BY_PERPO = {"train.seed"}  # `train.seeds` lists the values


@dataclass(frozen=True)
class Setting:
    """One key of the run's file: `kind` is its type in words, `default` is written as in YAML.

    `counts_in` names the artifacts in whose fingerprint it counts.
    """

    path: str
    description: str
    kind: str
    default: str
    counts_in: list[str]

    def markdown(self) -> str:
        """An entry of a definition list."""
        artifacts = _listed(self.counts_in, "and")
        counts = f"counts in the fingerprint of {artifacts}" if artifacts else "never counts"
        facts = f"{self.kind}; {self.default}; {counts}."
        return "\n".join([f"`{self.path}`", f":   {self.description}  ", f"    {facts}", ""])


@dataclass(frozen=True)
class Group:
    """Settings that belong together; `heading` is empty if the section has one group."""

    heading: str
    introduction: str
    settings: list[Setting]

    def markdown(self) -> str:
        """The heading, the introduction and an entry for each setting."""
        heading = [f"### {self.heading}\n"] if self.heading else []
        return "\n".join(
            [*heading, f"{self.introduction}\n", *(s.markdown() for s in self.settings)]
        )


def render(section: str | None = None) -> str:
    """The settings of one section as Markdown, or the whole page.

    `section` is one of `SECTIONS`; `run` holds the keys outside any section. Raises `ConfigError`
    for another name.
    """
    if section is None:
        return "\n".join([INTRODUCTION, *(render(name) for name in SECTIONS)])
    if section not in SECTIONS:
        raise ConfigError(
            f"no section '{section}'" + did_you_mean(section, SECTIONS),
            fix=f"choose one of {', '.join(SECTIONS)}",
        )
    title = "Top level" if section == TOP else section
    lines = [f"## {title}\n", *_OF_SECTION.get(section, ())]
    return "\n".join([*lines, *(group.markdown() for group in groups(section))])


def groups(section: str) -> Iterator[Group]:
    """The settings of a section, in the order of the models."""
    fields = RunConfig.model_fields
    if section == TOP:
        yield _group("", "", RunConfig, skip=SECTIONS[1:])
    elif section == "prepare":
        for source in SOURCE_MODELS:
            names = get_args(source.model_fields["source"].annotation)
            heading = "Source " + ", ".join(f"`{name}`" for name in names)
            yield _group(heading, "prepare.SPLIT.", source)
    elif section == "train":
        methods: Any = fields["train"].annotation
        yield _group("Methods", "train.", methods, skip=["shared"])
        yield from _nested("Each method", "train.", methods.model_fields["shared"].annotation)
    else:
        yield from _nested("", f"{section}.", fields[section].annotation)


def _nested(heading: str, prefix: str, model: Any) -> Iterator[Group]:
    """A model's settings, then those of the models inside it."""
    inner = {n: f.annotation for n, f in model.model_fields.items() if _is_section(f.annotation)}
    yield _group(heading, prefix, model, skip=inner)
    for name, kind in inner.items():
        yield from _nested(f"`{prefix}{name}`", f"{prefix}{name}.", kind)


def _group(heading: str, prefix: str, model: type[Section], skip: Any = ()) -> Group:
    settings = [
        _setting(f"{prefix}{name}", field)
        for name, field in model.model_fields.items()
        if name not in skip and f"{prefix}{name}" not in _SET_BY_PERPO
    ]
    introduction = (model.__doc__ or "").split("\n\n")[0]
    return Group(heading, " ".join(introduction.split()), settings)


def _setting(path: str, field: FieldInfo) -> Setting:
    words = _words(field.annotation)
    limits = _limits(field.metadata)
    kind = ", ".join([words[0].upper() + words[1:], *limits])
    description = _sentence(field.description or "")
    return Setting(path, description, kind, _default(field), counts_in(path))


def _sentence(text: str) -> str:
    """With a capital, unless it begins with code, and a full stop."""
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}." if text else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "default none" if value is None else f"default `{_as_yaml(value)}`"


def _as_yaml(value: Any) -> str:
    if isinstance(value, dict) and any(isinstance(v, Section) for v in value.values()):
        value = {name: {} for name in value}
    plain = str(value) if isinstance(value, Path) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


_PLAIN = {
    bool: "`true` or `false`",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    date: "date as YYYY-MM-DD",
}


def _words(kind: Any) -> str:
    """A type in plain words."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return ", ".join([_words(inside[0]), *_limits(inside[1:])])
    if origin is Literal:
        return _listed([str(value) for value in inside], "or")
    if origin in (Union, types.UnionType):
        return _joined([_words(part) for part in inside if part is not type(None)], "or")
    if origin is list:
        return f"list of {_words(inside[0])}"
    if origin is dict and inside[0] is Task:
        return "a mapping of tasks to such values"
    if origin is dict:
        return f"mapping of {_words(inside[0])} to {_words(inside[1])}"
    return "settings" if _is_section(kind) else _PLAIN[kind]


def _listed(names: list[str], word: str) -> str:
    """Names as code: `a`, `b` and `c`."""
    return _joined([f"`{name}`" for name in names], word)


def _joined(parts: list[str], word: str) -> str:
    *first, last = parts or [""]
    return f"{', '.join(first)} {word} {last}" if first else last


_LIMITS = {
    "ge": "at least {}",
    "gt": "above {}",
    "le": "at most {}",
    "lt": "below {}",
    "min_length": "at least {} entry",
}
_PATTERNS = {NAME_PATTERN: "a name", WORD_PATTERN: "one word"}


def _limits(metadata: Any) -> list[str]:
    """Bounds that pydantic checks, in words."""
    found = [
        words.format(value)
        for item in metadata
        for name, words in _LIMITS.items()
        if (value := getattr(item, name, None)) is not None
    ]
    patterns = (getattr(item, "pattern", None) for item in metadata)
    return found + [_PATTERNS[pattern] for pattern in patterns if pattern in _PATTERNS]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)
