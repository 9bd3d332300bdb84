"""A small version of a sweep, which shows that everything in it runs, and nothing else."""

from collections.abc import Sequence
from typing import Any

from perpo_pipeline.config.evaluations import BASE
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.sweep.cells import check_methods, uses
from perpo_pipeline.sweep.file import Grid, SweepFile, split_keys

SEED = 0


def quick_version(file: SweepFile, run: RunConfig) -> SweepFile:
    """The sweep with one seed, and of each grid two methods and the ends of its parameters' values.

    The methods are `base` and the last one that uses the parameters. How many prompts and
    lists there are is decided by settings, which the caller replaces. `run` is that of the cells,
    with what the key `set` and the command line say. Raises `ConfigError` for an unknown method.
    """
    grids = [_quick_grid(grid, file, run) for grid in file.grids]
    return file.model_copy(update={"grids": grids, "seeds": [SEED], "select_seeds": None})


def _quick_grid(grid: Grid, file: SweepFile, run: RunConfig) -> Grid:
    methods = grid.methods or [BASE, *run.train.methods]
    check_methods(methods, run)
    names = [name for key in grid.parameters for name in split_keys(key)]
    full = [one for one in methods if all(uses(one, name, file, run) for name in names)]
    last = (full or methods)[-1]
    parameters = {key: _ends(values) for key, values in grid.parameters.items()}
    kept = [name for name in methods if name in (BASE, last)]
    return grid.model_copy(update={"methods": kept, "parameters": parameters})


def _ends(values: Sequence[Any]) -> list[Any]:
    return [values[0], values[-1]] if len(values) > 1 else [*values]
