"""Import and start vLLM: its environment, the settings it accepts, the adapters it can serve."""

import importlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from perpo_pipeline import advice
from perpo_pipeline.config.inference import Decoding, InferenceConfig
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.errors import ConfigError, MissingDependencyError, first_line
from perpo_pipeline.vlm.adapters import LORA_WEIGHTS
from perpo_pipeline.vlm.families import Family
from perpo_pipeline.vlm.image_limits import (
    GRIDS,
    PIL_BACKEND,
    link_with_grids,
    option_arguments,
)
from perpo_pipeline.vlm.layers import LayerKinds

INSTALL = advice.install("vllm")
# The engine must run in this process. In another process it would receive requests at varying
# times, which changes its batches; and it would outlive a killed actor for seconds, holding the
# GPU's memory.
IN_THIS_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
# vLLM reads these when it is imported or started; values that the user has set stay.
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "4",  # GiB; vLLM's default is all free memory
}
TEMPERATURES = (0.01, 2.0)  # vLLM changes or refuses temperatures outside this range
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the values of max_lora_rank that vLLM accepts
NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})
# For layers of the vision tower or the projector vLLM silently gives wrong results.
_LANGUAGE_MODEL_LORA = re.compile(
    r".*\.language_model\.layers\.\d+\."
    r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.lora_[AB]\.weight"
)


def check_layers(layers: LayerKinds, family: str) -> None:
    """Raise ConfigError for layers that vLLM's CPU build computes in another way than training."""
    if layers.ahead and is_cpu_build():
        raise ConfigError(
            f"vLLM's CPU build lets a token of an image see only what stands before it, but in "
            f"{family} models the tokens of an image see each other: it would draw from other "
            "probabilities than training",
            fix="use the backend transformers, or vLLM on a GPU",
        )


def import_vllm(module: str) -> Any:
    """Import a module of vLLM, after setting its environment variables.

    Raises MissingDependencyError if vLLM is not installed, ConfigError if it cannot be imported.
    """
    os.environ.update(IN_THIS_PROCESS)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "vllm":
            raise MissingDependencyError(
                "vLLM is not installed.", fix=f"{INSTALL}, or choose the backend transformers"
            ) from None
        raise ConfigError(
            f"vLLM is installed but cannot be imported: {first_line(error)}",
            fix="repair the installation, or choose the backend transformers",
        ) from error


def check_settings(decoding: Decoding, settings: InferenceConfig, model: ModelConfig) -> None:
    """Raise ConfigError for settings that the installed vLLM cannot honour."""
    (low, high), backend = TEMPERATURES, settings.key("backend")
    if not decoding.is_greedy and not low <= decoding.temperature <= high:
        raise ConfigError(
            f"{settings.key('temperature')} is {decoding.temperature}; vLLM accepts {low} to "
            f"{high}",
            fix=f"change it, or set {backend} to transformers",
        )
    built_for = "cpu" if is_cpu_build() else "cuda"
    if model.device not in ("auto", built_for):
        raise ConfigError(
            f"model.device is {model.device}, and the installed vLLM was built for {built_for}",
            fix=f"set model.device to auto, or {backend} to transformers",
        )


def is_cpu_build() -> bool:
    """Whether the installed vLLM was built for the CPU."""
    return bool(import_vllm("vllm.platforms").current_platform.is_cpu())


def exact_lora_rank(family: Family, adapter: Path) -> int | None:
    """The max_lora_rank for an adapter that vLLM applies exactly; None for other adapters.

    Exact are plain LoRA adapters on the language model's linear layers only, in a tested family.
    """
    from safetensors import safe_open

    weights = adapter / LORA_WEIGHTS
    if not family.lora_in_vllm or not weights.is_file():
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
    vllm: Any,
    path: Path,
    dtype: str,
    lora_rank: int | None,
    settings: InferenceConfig,
    image_arguments: Mapping[str, Any] = NO_ARGUMENTS,
    *,
    images: int = 1,
    own_code: bool = False,
    has_states: bool = False,
) -> Any:
    """Start vLLM's `LLM` with the model at `path`; raises ConfigError if vLLM cannot serve it.

    `image_arguments` limit the size of images (see `Vlm.image_arguments`); a prompt has at most
    `images` of them. `own_code`: the model's own code may run. `has_states`: some of its layers
    have a recurrent state.
    """
    special: dict[str, Any] = {"enable_prefix_caching": True}
    if lora_rank is not None:
        special |= {"enable_lora": True, "max_lora_rank": lora_rank}
    if is_cpu_build():
        # vLLM's CPU engine fails on a seeded request whose prompt is read in several chunks.
        special |= {"enforce_eager": True, "enable_chunked_prefill": False}
        if has_states:  # whose cache it keeps only for prompts that are read in chunks
            special["enable_prefix_caching"] = False
    else:
        special["gpu_memory_utilization"] = settings.gpu_memory_utilization
    try:
        with _quietly():
            return vllm.LLM(
                str(path),
                dtype=dtype,
                seed=0,  # each request has its own seed
                generation_config="vllm",
                trust_remote_code=own_code,
                limit_mm_per_prompt={"image": images},
                mm_processor_kwargs={**PIL_BACKEND, **image_arguments},
                max_model_len=-1,  # the model's context, or what fits in memory
                use_tqdm_on_load=False,
                **special,
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise ConfigError(
            f"vLLM cannot serve the model: {first_line(error)}",
            where=str(path),
            fix=f"lower {settings.key('gpu_memory_utilization')} if other programs use the GPU; if "
            "the model is larger than one GPU, serve it with `vllm serve --tensor-parallel-size` "
            f"and set {settings.key('backend')} to openai; otherwise set it to transformers "
            "(VLLM_LOGGING_LEVEL=INFO shows vLLM's own log)",
        ) from error


@contextmanager
def limited_model(path: Path, image_arguments: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """The folder and the processor's arguments with which vLLM keeps limits on the image size.

    Limits on tiles of LLaVA's kind are in a folder of links, which is removed at the end: vLLM
    (0.32) refuses a list of lists among the arguments.
    """
    others = option_arguments(image_arguments)
    if GRIDS not in image_arguments:
        yield path, others
        return
    with tempfile.TemporaryDirectory(prefix="perpo-") as folder:
        link_with_grids(path, Path(folder), image_arguments[GRIDS])
        yield Path(folder), others


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the warnings that vLLM's start causes in libraries, such as about `use_fast`."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
