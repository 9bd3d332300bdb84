"""Import and start vLLM: its environment, the settings it may have, the adapters it can hold."""

import importlib
import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perpo_pipeline.config.run import ModelConfig, SampleConfig
from perpo_pipeline.errors import ConfigError, MissingDependencyError, first_line
from perpo_pipeline.vlm.adapters import LORA_WEIGHTS
from perpo_pipeline.vlm.models import Vlm

INSTALL = "pip install -c constraints.txt -e '.[vllm]'"
# The engine must be in this process: to another one requests would come as it happens, which alters
# its batches, and it would outlive an actor that is killed, for seconds, with the GPU's memory.
IN_THIS_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
# Read by vLLM when it is imported or started; what the user has set stays.
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "4",  # GiB; by itself it takes all memory that is free
}
TEMPERATURES = (0.01, 2.0)  # vLLM alters or refuses what lies outside
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM can be started with
# vLLM is silently wrong about the vision tower and the projector.
_LANGUAGE_MODEL_LORA = re.compile(
    r".*\.language_model\.layers\.\d+\."
    r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.lora_[AB]\.weight"
)


def import_vllm(module: str) -> Any:
    """A module of vLLM, which is optional and has no types.

    Raises MissingDependencyError where it is not installed, ConfigError where it is broken.
    """
    os.environ.update(IN_THIS_PROCESS)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "vllm":
            raise MissingDependencyError(
                "vLLM is not installed.", fix=f"{INSTALL}, or set sample.backend to transformers"
            ) from None
        raise ConfigError(
            f"vLLM is installed but cannot be imported: {first_line(error)}",
            fix="repair the installation, or set sample.backend to transformers",
        ) from error


def check_settings(sampling: SampleConfig, model: ModelConfig) -> None:
    """Raise ConfigError for what the vLLM that is installed cannot do."""
    low, high = TEMPERATURES
    if not low <= sampling.temperature <= high:
        raise ConfigError(
            f"sample.temperature is {sampling.temperature}; vLLM draws from {low} to {high}.",
            fix="change it, or set sample.backend to transformers",
        )
    built_for = "cpu" if is_cpu_build() else "cuda"
    if model.device not in ("auto", built_for):
        raise ConfigError(
            f"model.device is {model.device}, and the vLLM that is installed is for {built_for}.",
            fix="set model.device to auto, or sample.backend to transformers",
        )


def is_cpu_build() -> bool:
    """Whether the vLLM that is installed runs on the CPU."""
    return bool(import_vllm("vllm.platforms").current_platform.is_cpu())


def exact_lora_rank(front: Vlm, adapter: Path) -> int | None:
    """The rank to start vLLM with for an adapter that it applies exactly; None for others.

    Exact: plain LoRA, on the language model's own linear layers alone, in a family that was tried.
    """
    from safetensors import safe_open

    weights = adapter / LORA_WEIGHTS
    if not front.family.lora_in_vllm or not weights.is_file():
        return None
    with safe_open(weights, framework="pt") as stored:
        if not all(_LANGUAGE_MODEL_LORA.fullmatch(name) for name in stored.keys()):  # noqa: SIM118
            return None
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    special = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")
    if any(config.get(name) for name in special):
        return None
    return next((rank for rank in LORA_RANKS if rank >= config["r"]), None)


def start_engine(
    vllm: Any, path: Path, dtype: str, lora_rank: int | None, gpu_memory_utilization: float
) -> Any:
    """vLLM's `LLM` of the model at `path`; ConfigError where vLLM cannot serve it."""
    special: dict[str, Any] = {}
    if lora_rank is not None:
        special |= {"enable_lora": True, "max_lora_rank": lora_rank}
    if is_cpu_build():
        # A seeded request whose prompt is read in pieces ends vLLM's CPU engine with an error.
        special |= {"enforce_eager": True, "enable_chunked_prefill": False}
    else:
        special["gpu_memory_utilization"] = gpu_memory_utilization
    try:
        with _quietly():
            return vllm.LLM(
                str(path),
                dtype=dtype,
                seed=0,  # each prompt has its own
                generation_config="vllm",
                trust_remote_code=False,
                limit_mm_per_prompt={"image": 1},
                mm_processor_kwargs={"use_fast": False},  # the PIL image processor
                enable_prefix_caching=True,
                max_model_len=-1,  # the model's, or what fits in memory
                use_tqdm_on_load=False,
                **special,
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise ConfigError(
            f"vLLM cannot serve the model: {first_line(error)}",
            where=str(path),
            fix="lower sample.gpu_memory_utilization where the GPU is shared; a model larger than "
            "one GPU: serve it with `vllm serve --tensor-parallel-size`, sample.backend openai; "
            "else sample.backend transformers (VLLM_LOGGING_LEVEL=INFO shows vLLM's own log)",
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide what vLLM's way of starting makes libraries say, such as of `use_fast`."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
