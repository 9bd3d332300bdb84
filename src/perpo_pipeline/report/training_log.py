"""A training as its `adapter` artifact records it: what it learned from, and its curves."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

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
    those that were too long), in `steps` optimiser steps. `fingerprint` names the lists.
    """

    used: int
    kept: int
    sampled: int
    min_margin: float
    steps: int
    wall_s: float
    fingerprint: str


def read_trained(adapter: Version, lists: Version) -> Trained:
    """The numbers of an adapter; `lists` are the preferences in its lineage."""
    counts = adapter.manifest["counts"]
    kept = lists.manifest["rows"]
    return Trained(
        used=counts.get("lists", kept),
        kept=kept,
        sampled=lists.manifest["counts"]["lists"],
        min_margin=float(lists.manifest["settings"]["min_margin"]),
        steps=counts.get("steps", adapter.manifest["rows"]),
        wall_s=adapter.manifest["wall_s"],
        fingerprint=lists.fingerprint,
    )


def read_curves(adapter: Version) -> dict[str, Floats]:
    """The training log: `step` and the CURVES, each `(steps,)`, NaN where nothing was logged."""
    table = pl.DataFrame(adapter.table(columns=["step", *CURVES]))
    return {
        name: table[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        for name in table.columns
    }
