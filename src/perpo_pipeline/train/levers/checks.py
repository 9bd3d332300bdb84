"""Can a training use the levers that its settings name? Asked before anything is loaded."""

from collections.abc import Collection

from perpo_pipeline.config.levers import LEVERS, why_not_zero_3
from perpo_pipeline.errors import ConfigError


def check_levers(
    levers: Collection[str], *, zero_stage: int, on_cuda: bool, compiled: bool
) -> None:
    """Raise ConfigError for a lever that this machine or these settings cannot use.

    `compiled`: the decoder layers are compiled, wherever a shared prefix is used.
    """
    for name in levers:
        if LEVERS[name].cuda_only and not on_cuda:
            raise ConfigError(
                f"train.levers has {name}, which changes what is compiled for a GPU; the model "
                "will be on the CPU",
                fix=f"remove {name}",
            )
        if zero_stage == 3 and (why := why_not_zero_3(LEVERS[name])):
            raise ConfigError(
                f"train.levers has {name}, which {why}",
                fix=f"remove {name}, or use train.deepspeed: zero2",
            )
        if LEVERS[name].cuda_only and not compiled:
            raise ConfigError(
                f"train.levers has {name}, which needs compiled layers; with model.quantization "
                "they are compiled on request only",
                fix=f"remove {name}, or set train.compile: true",
            )
