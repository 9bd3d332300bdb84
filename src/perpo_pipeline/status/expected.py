"""What the configuration says about an artifact, beside what its manifest records.

Which settings count is declared in config/fingerprints.py. Where that declaration names a setting
that a stage finds out by itself (`auto`), any recorded value agrees: runs move between machines.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from perpo_pipeline.config.by_task import values_of
from perpo_pipeline.config.evaluations import read_evaluation
from perpo_pipeline.config.fingerprints import (
    COUNTED,
    RECORDED_AS,
    WHERE_SET,
    WHERE_USED,
    Counted,
    report_facts,
)
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.config.section import Json, Section
from perpo_pipeline.config.sources import SeveralSources
from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.status.graph import Key
from perpo_pipeline.status.sources import earlier_lists, expected_source, flat_sources
from perpo_pipeline.store.old_rules import RULES, Rule, as_today

AUTO = "auto"
SAID = {
    "scene_seed": "another seed than the configuration says",
    "testbed_version": "other pictures than today's testbed renders",
    "number": "another number of sources than the configuration names",
    "prompts": "other prompts than the source has now",
    "instruction": "another question for a box than the one of model.box_format",
    "own_rewards": "other code of score.reward",
    "earlier_lists": "other earlier lists than filter.earlier has now",
    "models": "other models than the configuration names",
    "evaluations": "other evaluations than the configuration names",
    "methods": "other settings of train than the configuration says",
}
"""Facts that a manifest records, in words: their values say little, or are long."""
RESOLVED = frozenset({"model.dtype", "sample.backend", "eval.backend"})
"""Settings whose `auto` a stage replaces by what it finds on the machine."""
_MISSING = object()


@dataclass(frozen=True)
class Difference:
    """A setting that an artifact was made with, and what the configuration says now."""

    key: str
    recorded: Any
    configured: Any
    said: str = ""

    def __str__(self) -> str:
        if self.said:
            return self.said
        return f"{self.key} {show(self.recorded)}, the configuration says " + show(self.configured)


def show(value: Any) -> str:
    """A value as the run's file would have it, short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(show, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k}: {show(v)}' for k, v in value.items())}}}"
    return str(value)


def differences(key: Key, manifest: Json, config: RunConfig) -> list[Difference]:
    """The settings of an artifact that differ from the configuration, except for the model's files.

    `key` is the artifact and its variant. A setting that the manifest does not have was made
    before the setting existed: with what happened then (old_rules.py), or else its default.
    """
    stage = manifest.get("stage", "")
    recorded = as_today(key[0], stage, manifest["settings"])
    if key[0] == "prompts":
        recorded = flat_sources(recorded)
    neutral = RULES.get((key[0], stage), Rule()).neutral
    found: list[Difference] = []
    for name, (setting, value) in _expected(key, manifest, config).items():
        before = recorded.get(name, _MISSING)
        if before is _MISSING:
            before = neutral.get(name, _default(key, setting, config))
            if before is _MISSING or setting in RESOLVED:
                continue
        if name in SAID and before != value:
            found.append(Difference(setting, before, value, SAID[name]))
        else:
            found += _compare(setting, before, value)
    return found


def _compare(setting: str, recorded: Any, configured: Any) -> Iterator[Difference]:
    """Differences of one setting; a setting of several values is compared value by value."""
    if recorded == configured:
        return
    if isinstance(recorded, Mapping) and isinstance(configured, Mapping):
        same_keys = recorded.keys() == configured.keys()
        if same_keys and setting.partition(".")[0] == "train":
            for name, value in configured.items():
                yield from _compare(f"{setting}.{name}", recorded[name], value)
            return
    yield Difference(setting, _plain(setting, recorded), _plain(setting, configured))


def _plain(setting: str, value: Any) -> Any:
    """One reward with weight 1 as its name, which is how most files have it."""
    if setting == "score.reward" and isinstance(value, Mapping) and list(value.values()) == [1.0]:
        return next(iter(value))
    return value


def _expected(key: Key, manifest: Json, config: RunConfig) -> dict[str, tuple[str, Any]]:
    """By the name in the manifest: the setting's dotted key, and its value in the configuration."""
    artifact, variant = key
    declared = COUNTED.get(artifact)
    if declared is None:
        return {}
    recorded: Json = manifest["settings"]
    if artifact == "prompts":
        return expected_source(config, variant, recorded)
    released = manifest.get("stage") == "prepare"  # lists that `perpo prepare` took over
    own = {} if released else _own_settings(declared, variant, config, recorded)
    others = {
        RECORDED_AS.get(k, k.rpartition(".")[2]): (k, value_of(config, k))
        for k in declared.others
        if k != "model.id" or artifact == "report"
    }
    found = {**own, **others, **_facts(artifact, config)}
    for name in WHERE_USED - recorded.keys():
        found.pop(name, None)
    if released:
        kept = {*recorded, *WHERE_SET} - {"reward"}
        found = {name: found[name] for name in found if name in kept}
    for name, (setting, value) in found.items():
        if setting in RESOLVED and value == AUTO:
            found[name] = (setting, recorded.get(name, value))
    values = {**recorded, **{name: value for name, (_, value) in found.items()}}
    unused = set() if released else _unused(declared, values)
    if artifact == "metrics":  # slices that nobody asks for any more
        unused -= recorded.keys()
    return {name: one for name, one in found.items() if name not in unused}


def _unused(declared: Counted, values: Json) -> set[str]:
    """Settings without effect; none if what decides this is not recorded."""
    try:
        return set(declared.unused(values))
    except KeyError:
        return set()


def _own_settings(
    declared: Counted, variant: str, config: RunConfig, recorded: Json
) -> dict[str, tuple[str, Any]]:
    section = section_of(declared, variant, config)
    if section is None:
        return {}
    unset = dict.fromkeys(section.counted_where_set & recorded.keys())
    values = {**unset, **section.result_settings()}
    if section.differs_by_task:
        values |= _for_its_tasks(section, variant, config, recorded)
    return {name: (f"{declared.section}.{name}", value) for name, value in values.items()}


def _for_its_tasks(section: Section, variant: str, config: RunConfig, recorded: Json) -> Json:
    """Settings by task as an artifact of one split has them, which may be of one task.

    Where only the data say the tasks, a recorded value of any task is taken for the right one.
    """
    split = read_evaluation(variant).split or variant
    tasks = config.tasks_of([split]) if split in config.prepare else None
    if tasks is not None:
        fitted = section.for_tasks(tasks).result_settings()
        return {name: fitted[name] for name in section.by_task}
    values = section.result_settings()
    return {
        name: recorded[name]
        for name in section.by_task
        if name in recorded and recorded[name] in values_of(values[name])
    }


def section_of(declared: Counted, variant: str, config: RunConfig) -> Section | None:
    """The section whose settings count; None for an adapter that the run does not name."""
    if declared.section == "train":
        return config.train.variants().get(variant)
    return getattr(config, declared.section) if declared.section else None


def _facts(artifact: str, config: RunConfig) -> dict[str, tuple[str, Any]]:
    """What a stage finds out from the configuration alone."""
    if artifact == "scores":
        weights = config.score.weights()
        found: dict[str, tuple[str, Any]] = {"reward": ("score.reward", weights)}
        if any(":" in name for name in weights):
            from perpo_pipeline.rewards.own import own_rewards

            found["own_rewards"] = ("score.reward", own_rewards(weights))
        return found
    if artifact == "preferences" and config.filter.earlier is not None:
        now = earlier_lists(config.filter.earlier)
        return {} if now is None else {"earlier_lists": ("filter.earlier", now)}
    if artifact == "report":
        keys = {"models": "eval.models", "evaluations": "eval", "methods": "train"}
        return {name: (keys[name], value) for name, value in report_facts(config).items()}
    return {}


def value_of(config: RunConfig, key: str) -> Any:
    """The value of a dotted setting, as a manifest records it."""
    section, _, name = key.partition(".")
    if section == "train":
        return getattr(config.train.shared, name)
    if key == "model.box_format":
        return config.model.reading().box_settings()["box_format"]
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return to_jsonable_python(value)


def _default(key: Key, setting: str, config: RunConfig) -> Any:
    """A setting's default, for an artifact that was made before the setting existed."""
    section, *rest = setting.split(".")
    kind: Any = TrainSettings if section == "train" else RunConfig
    if section == "prepare":
        source, rest = config.prepare[key[1]], rest[1:]
        if isinstance(source, SeveralSources) and rest:
            source, rest = source.of[int(rest[0])], rest[1:]
        kind = type(source)
    parts = rest if section in ("train", "prepare") else [section, *rest]
    for part in parts[:-1]:
        kind = kind.model_fields[part].annotation
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return _MISSING
    field = kind.model_fields.get(parts[-1])
    if field is None or field.is_required():
        return _MISSING
    return to_jsonable_python(field.get_default(call_default_factory=True))
