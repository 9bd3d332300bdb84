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

import sys
from importlib.abc import MetaPathFinder
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


sys.meta_path.append(_MovedModules())
