"""A sweep's file: what varies, over which methods and seeds, and on which splits it is measured."""

from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from perpo_pipeline import advice
from perpo_pipeline.config.overrides import Override
from perpo_pipeline.config.section import Json, Name
from perpo_pipeline.config.train import TrainingSeed
from perpo_pipeline.config.unique_keys import read_mapping
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.shipped.files import find_file
from perpo_pipeline.suggestions import did_you_mean

Parameters = dict[str, Annotated[list[Any], Field(min_length=1)]]
_STRICT = ConfigDict(extra="forbid", frozen=True)


class Grid(BaseModel):
    """Every combination of the parameters' values, for each of the methods.

    Keys joined by a comma vary together: `"train.beta, train.gamma": [[0.1, 0.5], [0.2, 1]]`.
    """

    model_config = _STRICT

    methods: list[Name] | None = Field(
        None, min_length=1, description="methods of this grid; none: base and all of the run"
    )
    parameters: Parameters = Field(
        default_factory=dict, description="values by the dotted key of a setting"
    )

    @field_validator("parameters", mode="before")
    @classmethod
    def _values_can_be_recorded(cls, parameters: Any) -> Any:
        """YAML reads 2026-01-01 as a date; a cell's setting, which is JSON, has it as text."""
        return _recorded(parameters)

    @field_validator("parameters", mode="after")
    @classmethod
    def _values_fit_their_keys(cls, parameters: Parameters) -> Parameters:
        for key, values in parameters.items():
            names = split_keys(key)
            if len(set(names)) < len(names) or not all(names):
                raise ValueError(f"'{key}' names a setting twice, or none")
            for value in values:
                fits = isinstance(value, list) and len(value) == len(names)
                if len(names) > 1 and not fits:
                    raise ValueError(
                        f"'{key}' varies {len(names)} settings together, so each of its values is "
                        f"a list of {len(names)}; {value!r} is not"
                    )
            if any(value in values[:place] for place, value in enumerate(values)):
                raise ValueError(f"'{key}' has a value twice")
        every = [name for key in parameters for name in split_keys(key)]
        if twice := [name for name in dict.fromkeys(every) if every.count(name) > 1]:
            raise ValueError(f"{', '.join(twice)} is varied by two keys of one grid")
        return parameters


class SweepFile(BaseModel):
    """One sweep, as its YAML file says it."""

    model_config = _STRICT

    sweep: Name = Field(description="name of the sweep: its rows are in data/RUN/sweep/NAME")
    config: Path = Field(description="the base run's YAML file, relative to this file")
    set: Json = Field(
        default_factory=dict, description="settings of every cell, by their dotted keys"
    )
    grids: list[Grid] = Field(
        min_length=1, description="what varies; the cells are those of all grids, each once"
    )
    seeds: list[TrainingSeed] | None = Field(
        None, min_length=1, description="seeds of the trainings; none: train.seeds of the run"
    )
    select_seeds: list[TrainingSeed] | None = Field(
        None,
        min_length=1,
        description="the seeds with which a setting is chosen on select_on; only the chosen "
        "settings are trained with `seeds` and measured on report_on; none: `seeds` choose, too",
    )
    metric: str | None = Field(
        None, description="the metric that decides; none: the main one of the task"
    )
    select_on: Name | None = Field(
        None, description="the split on which a method's setting is chosen, such as validation"
    )
    report_on: Name | None = Field(
        None, description="the split on which the chosen settings are reported, such as test"
    )
    report_cells: Literal["selected", "all"] = Field(
        "selected", description="the settings that are measured on report_on"
    )
    title: str | None = Field(None, description="heading of its page and of its figure")
    paper: str | None = Field(None, description="what a paper says about it, shown beside it")
    x: str | None = Field(
        None, description="the parameter on the x axis of its figure; none: each that varies"
    )

    @model_validator(mode="after")
    def _splits_differ(self) -> Self:
        if self.select_on is None and self.report_on is None:
            raise ValueError("name select_on, report_on or both: nothing would be measured")
        if self.select_on == self.report_on:
            raise ValueError(
                f"select_on and report_on are both '{self.select_on}': a setting looks too good "
                "on the prompts on which it was chosen"
            )
        for name in ("seeds", "select_seeds"):
            seeds = getattr(self, name) or []
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"{name} {seeds} names a seed twice")
        return self

    @model_validator(mode="after")
    def _seeds_that_choose_have_a_use(self) -> Self:
        if self.select_seeds is None:
            return self
        if self.select_on is None or self.report_on is None:
            raise ValueError(
                "select_seeds choose on select_on, and the other seeds are measured on report_on: "
                "name both"
            )
        if self.report_cells == "all":
            raise ValueError(
                "select_seeds has no use with report_cells: all, which measures every setting with "
                "every seed"
            )
        return self

    @model_validator(mode="after")
    def _x_is_a_parameter(self) -> Self:
        names = dict.fromkeys(name for group in self.together() for name in group)
        if self.x is not None and self.x not in names:
            raise ValueError(f"x: no grid varies '{self.x}'{did_you_mean(self.x, names)}")
        return self

    def together(self) -> list[tuple[str, ...]]:
        """The parameters of all grids; those of one key vary together."""
        keys = dict.fromkeys(key for grid in self.grids for key in grid.parameters)
        return [tuple(split_keys(key)) for key in keys]

    @property
    def splits(self) -> list[str]:
        """The splits that are measured, the one that decides first."""
        return [split for split in (self.select_on, self.report_on) if split is not None]


def _recorded(value: Any) -> Any:
    """A value of YAML with dates as text; raises ValueError for what is no value of JSON either."""
    if isinstance(value, Mapping):
        return {key: _recorded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_recorded(one) for one in value]
    if isinstance(value, date) and not isinstance(value, datetime):
        return value.isoformat()
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(
        f"{value!r} is of a type of YAML that no setting has ({type(value).__name__}): put it in "
        "quotes if it is text"
    )


def split_keys(key: str) -> list[str]:
    """The settings that one key of `parameters` varies."""
    return [name.strip() for name in key.split(",")]


def read_sweep(path: Path) -> SweepFile:
    """Read a sweep's file; the base run's file is then relative to the working folder.

    `sweeps/demo` is one that ships with perpo, if no such file is here. Raises `ConfigError` that
    names every fault of the file's own keys.
    """
    path = find_file(path)
    raw = _read_yaml(path)
    try:
        found = SweepFile.model_validate(raw)
    except ValidationError as error:
        lines = [f"  - {_fault(one)}" for one in error.errors(include_url=False)]
        count = "1 fault" if len(lines) == 1 else f"{len(lines)} faults"
        raise ConfigError(
            f"{count} in the sweep's file:\n" + "\n".join(lines),
            where=str(path),
            fix=f"correct it; {advice.page('sweeps')} has every key",
        ) from None
    return found.model_copy(update={"config": path.parent / found.config})


def shared_overrides(sweep: SweepFile) -> list[Override]:
    """The settings of every cell."""
    return [Override(key, value, f"set: {key}: {value}") for key, value in sweep.set.items()]


def _read_yaml(path: Path) -> Json:
    raw = read_mapping(
        path,
        kind="sweep file",
        otherwise="give the path of a sweep's YAML file",
        contents="a mapping",
        example=advice.page("sweeps"),
    )
    if "run" in raw and "sweep" not in raw:
        raise ConfigError(
            "this is the file of a run, not of a sweep",
            where=str(path),
            fix=f"name it in the sweep's file as `config: {path.name}` ({advice.page('sweeps')})",
        )
    return raw


def _fault(found: Any) -> str:
    key = ".".join(str(part) for part in found["loc"])
    if found["type"] == "extra_forbidden":
        names = Grid.model_fields if found["loc"][0] == "grids" else SweepFile.model_fields
        what = f"no such key{did_you_mean(str(found['loc'][-1]), names)}"
    else:
        what = found["msg"].removeprefix("Value error, ")
    return f"{key}: {what}" if key else what
