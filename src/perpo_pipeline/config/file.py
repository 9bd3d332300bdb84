"""Reading a run's YAML file and the command line's settings; every fault is reported at once."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from perpo_pipeline.config.faults import Fault, explain, find_options
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.config.overrides import (
    Key,
    Override,
    Placed,
    apply_overrides,
    overrides_of,
)
from perpo_pipeline.config.renamed import take_renamed, take_renamed_option
from perpo_pipeline.config.run import RunConfig, find_unprepared
from perpo_pipeline.config.section import Json, Section
from perpo_pipeline.config.unique_keys import read_mapping
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.shipped.files import OWN_CONFIG, closest_name, config_names, find_file


def load_config(
    path: Path, overrides: Mapping[Key, Any] | Iterable[Override] | None = None
) -> RunConfig:
    """Load a run's YAML file under the settings of `overrides`, which replace the file's.

    A bare name that is no file here, such as `demo`, is a file that ships with perpo. Raises
    `ConfigError` with every fault, each by its key and by the option that gave it.
    """
    path = find_file(path)
    return config_of(_read_yaml(path), path, overrides)


def config_of(
    raw: Json, path: Path, overrides: Mapping[Key, Any] | Iterable[Override] | None = None
) -> RunConfig:
    """As `load_config`, of the mapping `raw` that the file `path` holds or will hold."""
    raw = _todays_names(raw, path)  # before options replace what the file has
    given = overrides_of(overrides) if isinstance(overrides, Mapping) else overrides or ()
    placed = apply_overrides(raw, map(take_renamed_option, given))
    raw = _todays_names(raw, path)  # those in a whole section that an option gave
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise _config_error(path, _all_faults(error, raw), placed) from None


def _todays_names(raw: Json, path: Path) -> Json:
    try:
        return take_renamed(raw)
    except ConfigError as error:
        raise ConfigError(error.what, where=str(path), fix=error.fix) from None


class _ModelAlone(Section):
    model: ModelConfig


def model_settings(model_id: str, overrides: Iterable[Override]) -> ModelConfig:
    """The settings of a model without a run's file: the defaults under `overrides`.

    Raises ConfigError with every fault, and for overrides of anything but the model.
    """
    raw: Json = {"model": {"id": model_id}}
    given = [take_renamed_option(one) for one in overrides]
    other = [one for one in given if not one.dotted.startswith("model.")]
    if other or any(one.dotted == "model.id" for one in given):
        raise ConfigError(
            "; ".join(one.as_typed for one in other or given)
            + ": without a run's file, only settings of the model can be set, and not its id",
            fix="give --set model.SETTING=VALUE; `perpo settings model` lists them",
        )
    placed = apply_overrides(raw, given)
    try:
        return _ModelAlone.model_validate(raw).model
    except ValidationError as error:
        raise _config_error(Path("--model"), list(explain(error, raw)), placed) from None


def _all_faults(error: ValidationError, raw: Json) -> list[Fault]:
    """The faults that pydantic found, and the splits it did not come to for faults elsewhere."""
    faults = list(explain(error, raw))
    places = {fault.place for fault in faults}
    unprepared = (Fault(tuple(k.split(".")), what) for k, what in find_unprepared(*_splits(raw)))
    return faults + [fault for fault in unprepared if fault.place not in places]


def _config_error(path: Path, faults: Sequence[Fault], placed: Sequence[Placed]) -> ConfigError:
    options = [find_options(fault, placed) for fault in faults]
    lines = [f"  - {fault.line(found)}" for fault, found in zip(faults, options, strict=True)]
    all_options = dict.fromkeys(option for found in options for option in found)
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return ConfigError(
        f"{count} in the configuration:\n" + "\n".join(lines),
        where=", ".join(all_options) if all(options) else str(path),
        fix=f"correct these settings; `{_reference(faults)}` lists every one",
    )


def _reference(faults: Sequence[Fault]) -> str:
    """The command that lists the settings around the faults."""
    sections = {fault.place[0] for fault in faults}
    known = len(sections) == 1 and sections <= RunConfig.model_fields.keys()
    own = sections - {"run", "seed", "data_root"}
    return f"perpo settings {own.pop()}" if known and own else "perpo settings"


def _read_yaml(path: Path) -> Json:
    if path.is_dir():
        own = path / OWN_CONFIG
        raise ConfigError(
            "this is a folder, not a run's file",
            where=str(path),
            fix=f"run the command in it, where it reads {OWN_CONFIG}"
            if own.is_file()
            else "give a YAML file",
        )
    near = closest_name(path)
    return read_mapping(
        path,
        kind="configuration file",
        otherwise=f"did you mean {near}, which ships with perpo?"
        if near
        else f"give a file, or the name of one that ships with perpo: {', '.join(config_names())}",
        contents="a mapping of sections",
        example="configs/demo.yaml",
    )


def _splits(raw: Json) -> tuple[Json, list[str]]:
    """The splits that a file names, by setting, and those that it prepares."""
    prepare = raw.get("prepare")
    named = {
        f"{section}.{key}": raw[section][key]
        for section, key in (("sample", "split"), ("eval", "splits"))
        if isinstance(raw.get(section), dict) and key in raw[section]
    }
    return (named, list(prepare)) if isinstance(prepare, dict) else ({}, [])
