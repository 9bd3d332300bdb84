"""A training as its `adapter` artifact records it: what it learned from, and its curves."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from perpo_pipeline.config.by_task import in_words
from perpo_pipeline.store.artifacts import Version

Floats = npt.NDArray[np.float64]

CURVES = {
    "loss": "Loss",
    "reward_accuracy": "Reward accuracy",
    "implicit_margin": "Implicit margin (nats)",
    "best_logp": "Log-prob. of the best answers (nats)",
    "learning_rate": "Learning rate",
}
"""The columns of the log that the page draws, with their titles."""


@dataclass(frozen=True)
class Trained:
    """What an adapter was trained on, by its own manifest and lists.

    `kept` of `sampled` lists have at least `min_margin`; `used` of them were trained on (all but
    those that were too long), in `steps` optimiser steps. `fingerprint` names the lists, which
    hold every sample if `is_whole`. Of a training on some tasks alone these are the figures of
    their lists; `tasks` is else "".
    """

    used: int
    kept: int
    sampled: int
    min_margin: str
    steps: int
    wall_s: float
    fingerprint: str
    is_whole: bool
    tasks: str = ""


def read_trained(adapter: Version, lists: Version) -> Trained:
    """The numbers of an adapter; `lists` are the preferences in its lineage."""
    counts = adapter.manifest["counts"]
    settings, of_lists = lists.manifest["settings"], lists.manifest["counts"]
    kept, sampled, margin = lists.manifest["rows"], of_lists["lists"], settings["min_margin"]
    tasks: list[str] = adapter.manifest["settings"].get("tasks") or []
    if tasks and "tasks" in of_lists:
        own = [of_lists["tasks"][task] for task in tasks if task in of_lists["tasks"]]
        kept, sampled = sum(one["kept"] for one in own), sum(one["lists"] for one in own)
        if isinstance(margin, dict):
            margin = {task: margin[task] for task in tasks if task in margin}
    return Trained(
        used=counts.get("lists", kept),
        kept=kept,
        sampled=sampled,
        min_margin=in_words(margin),
        tasks=", ".join(tasks),
        steps=counts.get("steps", adapter.manifest["rows"]),
        wall_s=adapter.manifest["wall_s"],
        fingerprint=lists.fingerprint,
        is_whole=not any(settings.get(name) for name in ("list_size", "drop_unparsed"))
        and settings.get("strategy", "lists") == "lists",
    )


def read_curves(adapter: Version) -> dict[str, Floats]:
    """The training log: `step` and the CURVES, each `(steps,)`, NaN where nothing was logged."""
    table = pl.DataFrame(adapter.table(columns=["step", *CURVES]))
    return {
        name: table[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        for name in table.columns
    }
