"""Choose and open one of the backends of config/backends.py."""

import importlib.util
import pkgutil

from perpo_pipeline.config.backends import BACKENDS
from perpo_pipeline.config.inference import InferenceConfig
from perpo_pipeline.inference.backend import Backend, BackendSetup


def choose_backend(config: InferenceConfig, device: str) -> str:
    """Resolve `auto`: vLLM on CUDA if it is installed, else transformers."""
    if config.backend != "auto":
        return config.backend
    if device == "cpu" or importlib.util.find_spec("vllm") is None:
        return "transformers"
    import torch

    return "vllm" if torch.cuda.is_available() else "transformers"


def open_backend(setup: BackendSetup) -> Backend:
    """Load the model, or connect to the server, with the backend that the setup names."""
    backend: Backend = pkgutil.resolve_name(BACKENDS[setup.settings.backend].factory)(setup)
    return backend
