"""Training logs in other programs (`train.log_to`): transformers' integrations.

They write their files into the adapter's folder, wherever the command was started. transformers is
imported only when a training starts.
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
    """Raise MissingDependencyError, with the command that installs it, for a missing package."""
    for name in names:
        module = INTEGRATIONS[name].module
        if module is not None and importlib.util.find_spec(module) is None:
            raise MissingDependencyError(
                f"train.log_to has {name}, but its package is not installed",
                fix=f"{INTEGRATIONS[name].install}, or remove it from train.log_to",
            )


@contextmanager
def logging_under(names: Sequence[str], folder: Path) -> Iterator[None]:
    """Let each integration write into a folder of its name under `folder`.

    A server that the environment names (MLflow's) is kept. Integrations that keep a run open are
    closed at the end, so that the next training in this process starts a new run.
    """
    variables = _variables(names, folder.resolve())
    for name in {name for name, _ in variables}:
        (folder / name).mkdir(parents=True, exist_ok=True)
    with environment({variable: value for (_, variable), value in variables.items()}):
        try:
            yield
        finally:
            for name in set(CLOSE) & set(names) & set(sys.modules):
                CLOSE[name](sys.modules[name], sys.exc_info()[0] is not None)


def _variables(names: Sequence[str], folder: Path) -> dict[tuple[str, str], str]:
    """By integration and variable, the value that sends its files into its folder."""
    return {
        (name, variable): value.format(folder / name)
        for name in names
        for variable, value in INTEGRATIONS[name].variables.items()
        if "://" not in os.environ.get(variable, "")  # a server's address
    }


def _close_wandb(wandb: Any, failed: bool) -> None:
    """Also end its service, which keeps the folder that it was started with."""
    if wandb.run is not None:
        wandb.finish(exit_code=int(failed))
    wandb.teardown()


def _close_swanlab(swanlab: Any, failed: bool) -> None:
    if swanlab.get_run() is not None:
        swanlab.finish()


# Integrations that keep their run open until it is finished explicitly.
CLOSE: dict[str, Callable[[Any, bool], None]] = {"wandb": _close_wandb, "swanlab": _close_swanlab}


def keep_loose_files(output_dir: Path, folder: Path) -> None:
    """Move an integration's files away from the checkpoints, which are removed at the end."""
    for file in [path for path in output_dir.glob("*") if path.is_file()]:
        folder.mkdir(parents=True, exist_ok=True)
        os.replace(file, folder / file.name)


def reporting_callbacks(names: Sequence[str]) -> list[Any]:
    """The Trainer's callbacks for these integrations; an error in them becomes a ConfigError."""
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
    """Turn the integration's own errors, mostly a missing login, into one with advice."""
    try:
        yield
    except Exception as error:
        raise ConfigError(
            f"logging to {name} failed: {type(error).__name__}: {first_line(error)}",
            fix=f"check that you are logged in and that it can be reached, or remove {name} from "
            "train.log_to; the same command resumes from the last checkpoint",
        ) from error
