"""DeepSpeed's ZeRO: its settings by name, the packages it needs, its checkpoints and weights.

The settings ship with the package (train/deepspeed/*.json, also seen as configs/deepspeed). They
have `auto` for what the run's own file decides: batch, clipping and precision.
"""

import copy
import json
import os
import pickle
import shutil
import sys
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perpo_pipeline import advice
from perpo_pipeline.errors import (
    ArtifactError,
    ConfigError,
    MissingDependencyError,
    first_line,
)
from perpo_pipeline.machine import environment

SHIPPED = Path(__file__).with_name("deepspeed")
INSTALL = f"DS_BUILD_OPS=0 {advice.install('deepspeed')}"
COMPILER = "apt-get install g++ ninja-build"

FORCE_GUARD = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"

ZeroConfig = dict[str, Any]
# The run's own settings decide these. Without the key DeepSpeed would use its own default, which is
# not to clip.
BY_TRAINER = (
    "gradient_clipping",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
)


def read_zero_config(name: str) -> ZeroConfig:
    """The DeepSpeed settings that `train.deepspeed` names: zero2, zero3, zero3-offload or a path.

    Raises ConfigError if it is not such a file, or sets what the run's own settings decide.
    """
    known = sorted(path.stem for path in SHIPPED.glob("*.json"))
    path = SHIPPED / f"{name}.json" if name in known else Path(name)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(
            f"there are no DeepSpeed settings named '{name}'",
            fix=f"set train.deepspeed to one of {known}, or to the path of a JSON file",
        ) from None
    except ValueError as error:
        raise ConfigError(f"the file is not valid JSON: {error}", where=str(path)) from error
    if not isinstance(config, dict) or zero_stage(config) not in (1, 2, 3):
        raise ConfigError("the file has no zero_optimization.stage of 1, 2 or 3", where=str(path))
    decided = {key for key in BY_TRAINER if config.get(key, "auto") != "auto"}
    taken = sorted({"optimizer", "scheduler", "fp16"} & set(config) | decided)
    if taken:
        raise ConfigError(
            f"the DeepSpeed settings set {taken}, which the run's own settings decide",
            where=str(path),
            fix="remove these keys, or set them to auto (model.dtype sets the precision)",
        )
    return config


def zero_stage(config: Mapping[str, Any] | None) -> int:
    """1, 2 or 3; 0 without DeepSpeed settings."""
    zero = (config or {}).get("zero_optimization")
    return int(zero.get("stage", 0)) if isinstance(zero, dict) else 0


def offloads(config: Mapping[str, Any]) -> bool:
    """Whether weights or optimiser state are kept in the machine's memory."""
    zero = config["zero_optimization"]
    places = [(zero.get(key) or {}).get("device") for key in ("offload_param", "offload_optimizer")]
    return any(place not in (None, "none") for place in places)


def check_installed(config: Mapping[str, Any]) -> None:
    """Raise MissingDependencyError, with the command that installs it, for what is missing.

    DeepSpeed compiles its CPU optimiser, which works with offload, at its first use.
    """
    if util.find_spec("deepspeed") is None:
        raise MissingDependencyError("train.deepspeed needs DeepSpeed", fix=f"run: {INSTALL}")
    if not offloads(config):
        return
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if missing:
        raise MissingDependencyError(
            f"DeepSpeed compiles its CPU optimiser for offload, but {' and '.join(missing)} is "
            "missing",
            fix=f"run: {COMPILER}",
        )


def put_ninja_on_path() -> None:
    """Append the folder of this Python's programs to PATH, where DeepSpeed looks for ninja.

    PATH has it only if the environment is activated.
    """
    programs = str(Path(sys.executable).parent)
    if programs not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join(filter(None, [os.environ.get("PATH"), programs]))


def complete_zero_config(config: ZeroConfig, *, dtype: torch.dtype, hidden_size: int) -> ZeroConfig:
    """The settings with this model's precision, and with the sizes that `auto` stands for."""
    config = copy.deepcopy(config)
    config["bf16"] = {**config.get("bf16", {}), "enabled": dtype == torch.bfloat16}
    zero = config["zero_optimization"]
    sizes = {
        "reduce_bucket_size": hidden_size**2,
        "stage3_prefetch_bucket_size": int(0.9 * hidden_size**2),
        "stage3_param_persistence_threshold": 10 * hidden_size,
    }
    for key, size in sizes.items():
        if zero.get(key) == "auto":
            zero[key] = size
    config["zero_allow_untested_optimizer"] = True
    for key in BY_TRAINER:
        config.setdefault(key, "auto")
    return config


def load_zero_checkpoint(engine: Any, directory: str) -> None:
    """Load what `engine.save_checkpoint` wrote, without running code that a pickle may hold.

    Raises ArtifactError if DeepSpeed's files are missing, or hold anything but numbers.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    known: list[Any] = [ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address]
    try:  # DeepSpeed asks torch to load any pickle; this guard overrides that
        with environment({FORCE_GUARD: "1"}), torch.serialization.safe_globals(known):
            found, _ = engine.load_checkpoint(directory, load_module_strict=False)
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"DeepSpeed did not write this checkpoint: {first_line(error)}",
            where=directory,
            fix="remove it: the same command resumes from the checkpoint before it",
        ) from error
    if found is None:
        raise ArtifactError(
            "the checkpoint lacks DeepSpeed's files",
            where=directory,
            fix="remove it: the same command resumes from the checkpoint before it",
        )


def whole_masters(model: nn.Module) -> dict[Tensor, Tensor]:
    """The float32 value of each trained parameter, gathered from all processes onto the CPU.

    Every process must call it. The values are bit-equal to those in ZeRO's optimiser.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    found: dict[Tensor, Tensor] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            whole = safe_get_full_fp32_param(parameter)
            found[parameter] = whole.detach().to("cpu", copy=True)
    return found
