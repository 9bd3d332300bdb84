"""Choose and open one of the backends of config/backends.py."""

import importlib.util
import pkgutil
from pathlib import Path

from perpo_pipeline.config.backends import BACKENDS
from perpo_pipeline.config.inference import InferenceConfig
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.inference.backend import Backend, BackendSetup
from perpo_pipeline.vlm.cards import check_cards


def choose_backend(config: InferenceConfig, device: str, quantization: str | None = None) -> str:
    """Resolve `auto`: vLLM on CUDA if it is installed, else transformers.

    vLLM holds all weights in 16 bits, so quantised ones are left to transformers.
    """
    if config.backend != "auto":
        return config.backend
    if device == "cpu" or quantization or importlib.util.find_spec("vllm") is None:
        return "transformers"
    import torch

    return "vllm" if torch.cuda.is_available() else "transformers"


def check_adapter(backend: str, adapter: Path | None) -> None:
    """Raise ConfigError if a backend is to apply an adapter and cannot."""
    if backend == "openai" and adapter is not None:
        raise ConfigError(
            "the openai backend cannot load an adapter into a server",
            where=str(adapter),
            fix="merge it into its base (`perpo merge`), serve the merged model, and give that one "
            "as --model without an adapter (to `perpo eval` with `--evaluation base`, and with "
            "--out, so that the run keeps its own base)",
        )


def open_backend(setup: BackendSetup) -> Backend:
    """Load the model, or connect to the server, with the backend that the setup names.

    Raises first as `check_cards` does where the model is loaded.
    """
    if setup.settings.backend != "openai":
        check_cards(setup.model)
    backend: Backend = pkgutil.resolve_name(BACKENDS[setup.settings.backend].factory)(setup)
    return backend
