"""Logs of a training in other programs (`train.log_to`): transformers' integrations.

What they write on this disk goes under the folder of what is trained, wherever the command was
started. transformers is imported only when a training starts: config.py asks here for the names.
"""

import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perpo_pipeline.config.integrations import INTEGRATIONS
from perpo_pipeline.errors import ConfigError, MissingDependencyError, first_line
from perpo_pipeline.machine import environment


def check_installed(names: Sequence[str]) -> None:
    """Raise MissingDependencyError, with the command that installs it, for what is not here."""
    for name in names:
        module = INTEGRATIONS[name].module
        if module is not None and importlib.util.find_spec(module) is None:
            raise MissingDependencyError(
                f"train.log_to has {name}, and its package is not installed",
                fix=f"{INTEGRATIONS[name].install}, or leave it out",
            )


@contextmanager
def logging_under(names: Sequence[str], folder: Path) -> Iterator[None]:
    """Let the integrations write under `folder`, each in a folder of its name.

    Servers that the environment names (MLflow's) stay. A run that an integration keeps open is
    closed at the end, so that the next training in this process is a run of its own.
    """
    with environment(_variables(names, folder.resolve())):
        try:
            yield
        finally:
            for name in set(CLOSE) & set(names) & set(sys.modules):
                CLOSE[name](sys.modules[name], sys.exc_info()[0] is not None)


def _variables(names: Sequence[str], folder: Path) -> dict[str, str]:
    """What is to be set, with the folders made that it names."""
    found = {}
    for name in names:
        for variable, value in INTEGRATIONS[name].variables.items():
            if "://" not in os.environ.get(variable, ""):  # a server's address
                (folder / name).mkdir(parents=True, exist_ok=True)
                found[variable] = value.format(folder / name)
    return found


def _close_wandb(wandb: Any, failed: bool) -> None:
    """Also its service, which keeps the folder that it was started with."""
    if wandb.run is not None:
        wandb.finish(exit_code=int(failed))
    wandb.teardown()


def _close_swanlab(swanlab: Any, failed: bool) -> None:
    if swanlab.get_run() is not None:
        swanlab.finish()


# Those that go on until they are told that the next training is another run.
CLOSE: dict[str, Callable[[Any, bool], None]] = {"wandb": _close_wandb, "swanlab": _close_swanlab}


def keep_loose_files(output_dir: Path, folder: Path) -> None:
    """Move what an integration wrote beside the checkpoints, which are removed at the end."""
    for file in [path for path in output_dir.glob("*") if path.is_file()]:
        folder.mkdir(parents=True, exist_ok=True)
        os.replace(file, folder / file.name)


def reporting_callbacks(names: Sequence[str]) -> list[Any]:
    """Trainer's callbacks of these integrations; whatever they raise becomes a ConfigError."""
    from transformers.integrations import integration_utils

    callbacks = []
    for name in dict.fromkeys(names):
        with _failures_explained(name):
            kind: Any = integration_utils.INTEGRATION_TO_CALLBACK[name]
            callback = kind()
        for event in [attribute for attribute in dir(kind) if attribute.startswith("on_")]:
            setattr(callback, event, _explained(name, getattr(callback, event)))
        callbacks.append(callback)
    return callbacks


def _explained(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _failures_explained(name):
            return method(*args, **kwargs)

    return call


@contextmanager
def _failures_explained(name: str) -> Iterator[None]:
    """These programs raise errors of their own, for a missing login above all."""
    try:
        yield
    except Exception as error:
        raise ConfigError(
            f"logging to {name} failed: {type(error).__name__}: {first_line(error)}",
            fix=f"see that you are logged in there and that it can be reached, or leave {name} out "
            "of train.log_to; the same command goes on after the last checkpoint",
        ) from error
