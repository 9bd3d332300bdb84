"""PerPO: perceptual preference optimisation of vision-language models (arXiv:2502.04371).

The rooms, each importing only those below it (`make lint` checks that):

cli, commands   the command line
report, merge   the report, and merged models
prepare, sample, score, filter, train, evaluate   one for each stage; none imports another
inference       completions from any backend, here or on several GPUs and machines
run             where a run's artifacts are; finished work is reused
status          the graph of a run, and the state of each of its artifacts
vlm             models: families, files, prompts, decoding, adapters
config          settings: the run's YAML file and its sections
rewards         score an answer against its ground truth
answers         box formats, reading answers, checks of truths
store           artifacts and their schemas
"""

import logging
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

# Modules that users import by name, and where they are now.
MOVED = {
    "perpo_pipeline.boxes": "perpo_pipeline.answers.boxes",
    "perpo_pipeline.artifacts": "perpo_pipeline.store.artifacts",
    "perpo_pipeline.schemas": "perpo_pipeline.store.schemas",
    "perpo_pipeline.models": "perpo_pipeline.vlm.models",
    "perpo_pipeline.lineage": "perpo_pipeline.status.lineage",
    "perpo_pipeline.config_file": "perpo_pipeline.config.file",
}


class _MovedModules(MetaPathFinder):
    """Makes the import of a module that has moved fail with its new name."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname in MOVED:
            raise ModuleNotFoundError(
                f"{fullname} has moved: import {MOVED[fullname]} instead", name=fullname
            )


class _QuietBitsandbytes(MetaPathFinder):
    """Imports bitsandbytes so that it prints nothing and asks no hub.

    On a CPU with bf16 instructions its import lets the package `kernels` download a kernel from a
    hub, or prints a warning without that package. transformers and PEFT import bitsandbytes as soon
    as it is installed, whatever the model is. The kernel would only serve 4-bit layers on a CPU,
    which compute in another way here (vlm/quantization.py).
    """

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        found = PathFinder.find_spec(fullname, path) if fullname == "bitsandbytes" else None
        if found is None or found.loader is None:
            return None
        execute = found.loader.exec_module

        def execute_quietly(module: ModuleType) -> None:
            before = sys.modules.get("kernels")
            sys.modules["kernels"] = None  # type: ignore[assignment] # its import fails
            logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
            try:
                execute(module)
            finally:
                del sys.modules["kernels"]
                if before is not None:
                    sys.modules["kernels"] = before

        found.loader.exec_module = execute_quietly  # type: ignore[method-assign]
        return found


sys.meta_path.append(_MovedModules())
sys.meta_path.insert(0, _QuietBitsandbytes())
