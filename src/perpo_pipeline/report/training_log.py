"""The curves of a training, from the log in its `adapter` artifact."""

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


def read_curves(adapter: Version) -> dict[str, Floats]:
    """The training log: `step` and the CURVES, each `(steps,)`, NaN where nothing was logged."""
    table = pl.DataFrame(adapter.table(columns=["step", *CURVES]))
    return {
        name: table[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        for name in table.columns
    }
