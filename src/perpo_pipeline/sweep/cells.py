"""The cells of a sweep: a method, a setting and a seed each, with the configuration of its run."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from perpo_pipeline.config.evaluations import BASE
from perpo_pipeline.config.file import load_config
from perpo_pipeline.config.fingerprints import counts_in
from perpo_pipeline.config.methods import METHODS
from perpo_pipeline.config.overrides import Override, refuse_without_effect
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.suggestions import did_you_mean
from perpo_pipeline.sweep.file import Grid, SweepFile, shared_overrides, split_keys

Setting = Mapping[str, Any]
OF_THE_SWEEP = {
    "run": "`set` gives every cell another run",
    "data_root": "`set` gives every cell another folder",
    "train.seeds": "use the key `seeds` of the sweep",
    "eval.splits": "use `select_on` and `report_on`",
    "eval.models": "use `methods`",
    "train.method": "use `methods`",
}
"""Settings that cannot vary: what to use in their place."""
_MEASURED = frozenset({"prompts", "predictions", "metrics"})
# Settings of a source that choose which prompts there are (config/sources.py).
CHOOSE_PROMPTS = frozenset(
    {
        *("source", "path", "num_prompts", "start", "share", "per_dataset", "datasets", "split_by"),
        *("splits", "per", "task", "leave_out_evaluated", "leave_out_bad_rows"),
        "images_per_prompt",
    }
)
_OF_NO_CELL = frozenset({"report", "harness", "rounds"})  # artifacts that no cell has


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation; of `base` there is no training, and no seed.

    `setting` has the varied values by dotted key, as far as the method uses them. `config` is the
    whole run of the cell, measured on `config.eval.splits`. Its seed `chooses` the method's
    setting, is one of those that are reported, or both.
    """

    method: str
    setting: Setting
    seed: int | None
    config: RunConfig
    chooses: bool = True
    is_reported: bool = True

    @property
    def setting_json(self) -> str:
        """The setting as it is recorded."""
        return json.dumps(self.setting, ensure_ascii=False)

    @property
    def title(self) -> str:
        """`perpo, train.beta 0.5, seed 1`."""
        seed = [] if self.seed is None else [f"seed {self.seed}"]
        return ", ".join([self.method, *setting_words(self.setting), *seed])

    def on(self, splits: Sequence[str]) -> "Cell":
        """The same cell, measured on other splits."""
        evaluated = self.config.eval.model_copy(update={"splits": list(splits)})
        return replace(self, config=self.config.model_copy(update={"eval": evaluated}))


def setting_words(setting: Setting) -> list[str]:
    """`train.beta 0.5` for each value."""
    return [f"{key} {shown_value(value)}" for key, value in setting.items()]


def shown_value(value: Any) -> str:
    """A value as the file could have it; numbers without needless digits."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def make_cells(sweep: SweepFile, given: Sequence[Override] = ()) -> list[Cell]:
    """Every cell once, in the order of the file, with every seed that chooses or is reported.

    Raises `ConfigError` for a parameter that does not exist, has a wrong value, changes no result
    or is used by no method, and for splits that cannot be measured.
    """
    base, shared = open_base(sweep, given)
    refuse_without_effect(base, shared)
    _check_splits(sweep, base)
    reported = sweep.seeds or base.train.seeds
    choosing = sweep.select_seeds or reported
    seeds = list(dict.fromkeys([*reported, *choosing]))
    found: dict[tuple[str, str, int | None], Cell] = {}
    for grid in sweep.grids:
        methods = grid.methods or [BASE, *base.train.methods]
        check_methods(methods, base)
        _check_parameters(grid, methods, sweep, base)
        for method, setting in _settings(grid, methods, sweep, base):
            for seed in [None] if method == BASE else seeds:
                key = (method, json.dumps(setting, sort_keys=True), seed)
                if key not in found:
                    config = _configure(sweep, shared, base, method, setting, seed)
                    roles = seed is None or seed in choosing, seed is None or seed in reported
                    found[key] = Cell(method, setting, seed, config, *roles)
    cells = list(found.values())
    _check_choice(sweep, cells)
    return cells


def open_base(sweep: SweepFile, given: Sequence[Override] = ()) -> tuple[RunConfig, list[Override]]:
    """The run under the settings of every cell, and these settings.

    `given` are those of the command line, which replace those of the key `set`.
    """
    asked = {override.dotted for override in given}
    shared = [*(one for one in shared_overrides(sweep) if one.dotted not in asked), *given]
    return load_config(sweep.config, shared), shared


def _settings(
    grid: Grid, methods: Sequence[str], sweep: SweepFile, base: RunConfig
) -> Iterator[tuple[str, Setting]]:
    """Each method with each combination of the values that it uses."""
    keys = [split_keys(key) for key in grid.parameters]
    for method in methods:
        for values in itertools.product(*grid.parameters.values()):
            pairs = [
                (name, value)
                for names, together in zip(keys, values, strict=True)
                for name, value in zip(
                    names, together if len(names) > 1 else [together], strict=True
                )
            ]
            yield (
                method,
                {name: value for name, value in pairs if uses(method, name, sweep, base)},
            )


def uses(method: str, key: str, sweep: SweepFile, base: RunConfig) -> bool:
    """Whether a setting can change what is measured of a method."""
    section, _, rest = key.partition(".")
    if method == BASE:
        if section == "prepare":
            return rest.partition(".")[0] in sweep.splits
        return bool(_MEASURED.intersection(counts_in(key)))
    loss = METHODS[_loss_of(method, base)]
    if section == "train":
        return loss.uses(rest.partition(".")[0])
    return True


def _loss_of(name: str, base: RunConfig) -> str:
    """The method of an entry of `train.methods`, or the method with this name."""
    own = base.train.methods.get(name)
    if own is None:
        return name
    return next(
        settings.method
        for variant, settings in base.train.variants().items()
        if variant in (name, f"{name}-seed{base.train.seeds[0]}")
    )


def _configure(
    sweep: SweepFile,
    shared: Sequence[Override],
    base: RunConfig,
    method: str,
    setting: Setting,
    seed: int | None,
) -> RunConfig:
    """The run of a cell: the base run's file under the cell's settings."""
    overrides = [*shared]
    if method != BASE and method not in base.train.methods:
        overrides.append(_quiet(("train", "methods", method, "method"), method))
    for key, value in setting.items():
        parts = key.split(".")
        place: Any = key
        if parts[0] == "train":
            place = ("train", "methods", method, *parts[1:])
        overrides.append(Override(place, value, f"parameters: {key}: {value}"))
    overrides += [
        _quiet("train.seeds", [0 if seed is None else seed]),
        _quiet("eval.splits", sweep.splits),
        _quiet("eval.models", [method]),
        _quiet("eval.conditions", []),
        _quiet("eval.condition_splits", None),
        _quiet("eval.out_of_domain", []),
    ]
    return load_config(sweep.config, overrides)


def _quiet(key: Any, value: Any) -> Override:
    return Override(key, value, "the sweep")


def check_methods(methods: Sequence[str], base: RunConfig) -> None:
    """Raise `ConfigError` for a method that neither the run nor perpo has."""
    known = [BASE, *dict.fromkeys([*base.train.methods, *METHODS])]
    for method in methods:
        if method not in known:
            raise ConfigError(
                f"grids: there is no method '{method}'{did_you_mean(method, known)}",
                fix=f"choose from {', '.join(known)}",
            )


def _check_parameters(
    grid: Grid, methods: Sequence[str], sweep: SweepFile, base: RunConfig
) -> None:
    """Raise `ConfigError` for a parameter that no cell could use."""
    for key in (name for names in grid.parameters for name in split_keys(names)):
        where = f"parameters: {key}"
        if key in OF_THE_SWEEP:
            raise ConfigError(f"{where}: this cannot vary; {OF_THE_SWEEP[key]}", fix="remove it")
        section, split, *names = [*key.split("."), ""]
        setting = next(name for name in names or [""] if not name.isdecimal())  # of several sources
        is_measured = section == "prepare" and split in sweep.splits
        if is_measured and (not setting or setting in CHOOSE_PROMPTS):
            raise ConfigError(
                f"{where}: this cannot vary, because the settings are measured on {split}: "
                "each on other prompts, and the luckiest would be chosen",
                fix="remove it; `set` gives every cell the same value",
            )
        if key.startswith("train.methods."):
            name = key.split(".")[2]
            raise ConfigError(
                f"{where}: a sweep sets each method's own value by itself",
                fix=f"write train.{'.'.join(key.split('.')[3:])}, in a grid with methods: [{name}]",
            )
        if key.split(".")[0] not in RunConfig.model_fields or ("." not in key and key != "seed"):
            sections = [name for name in RunConfig.model_fields if name not in ("run", "data_root")]
            raise ConfigError(
                f"{where}: there is no such setting{did_you_mean(key.split('.')[0], sections)}",
                fix="give its whole key, such as train.beta; `perpo settings` lists every one",
            )
        if not any(uses(method, key, sweep, base) for method in methods):
            raise ConfigError(
                f"{where}: {' and '.join(methods)} {'does' if len(methods) == 1 else 'do'} not use "
                "it, so it would change nothing",
                fix="remove it, or name other methods in this grid",
            )
        if not {*counts_in(key)} - _OF_NO_CELL:
            raise ConfigError(
                f"{where}: this setting changes no result",
                fix="remove it; `set` gives every cell the same value",
            )


def _check_splits(sweep: SweepFile, base: RunConfig) -> None:
    named = {"select_on": sweep.select_on, "report_on": sweep.report_on}
    for key, split in named.items():
        if split is None:
            continue
        if split not in base.prepare:
            raise ConfigError(
                f"{key}: the run prepares no split '{split}'{did_you_mean(split, base.prepare)}",
                where=str(sweep.config),
                fix=f"choose from {', '.join(base.prepare)}, or add it to the run's `prepare`",
            )
        if split == base.sample.split:
            raise ConfigError(
                f"{key}: the methods are trained on the prompts of '{split}' (sample.split)",
                where=str(sweep.config),
                fix="choose a split of other prompts",
            )


def with_several_settings(cells: Sequence[Cell]) -> list[str]:
    """The methods of which one of several settings is chosen."""
    settings = {(cell.method, cell.setting_json) for cell in cells}
    return [m for m in {c.method: None for c in cells} if sum(m == n for n, _ in settings) > 1]


def chosen_where_compared(sweep: SweepFile, cells: Sequence[Cell]) -> list[str]:
    """The methods whose setting is chosen on the prompts on which methods are compared.

    It looks too good there, so nothing is claimed of these methods (docs/evidence.md).
    """
    return [] if sweep.report_on is not None else with_several_settings(cells)


def _check_choice(sweep: SweepFile, cells: Sequence[Cell]) -> None:
    """Raise `ConfigError` where a setting must be chosen and no split is named for it."""
    several = with_several_settings(cells)
    if sweep.select_on is None and several:
        raise ConfigError(
            f"{' and '.join(several)} {'has' if len(several) == 1 else 'have'} several settings, "
            "and no split on which one is chosen",
            fix="name it, e.g. `select_on: validation`",
        )
