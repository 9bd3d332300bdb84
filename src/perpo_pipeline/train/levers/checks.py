"""Can a training use the levers that its settings name? Asked before anything is loaded."""

from collections.abc import Collection

from perpo_pipeline.config.levers import LEVERS
from perpo_pipeline.errors import ConfigError


def check_levers(levers: Collection[str], *, zero_stage: int, on_cuda: bool) -> None:
    """Raise ConfigError for a lever that this machine or these settings cannot use."""
    for name in levers:
        if LEVERS[name].cuda_only and not on_cuda:
            raise ConfigError(
                f"train.levers has {name}, which changes what is compiled for a GPU; the model "
                "will be on the CPU",
                fix=f"remove {name}",
            )
        if LEVERS[name].cuda_only and zero_stage == 3:
            raise ConfigError(
                f"train.levers has {name}, which needs compiled layers; under ZeRO-3 none is",
                fix=f"remove {name}, or use train.deepspeed: zero2",
            )
        if LEVERS[name].whole_weights and zero_stage == 3:
            raise ConfigError(
                f"train.levers has {name}, which reads weights that ZeRO-3 shards",
                fix=f"remove {name}, or use train.deepspeed: zero2",
            )
