"""Imports what a training in several processes needs, for commands that are forked."""

import importlib

from perpo_pipeline.machine import compute_on_cpu

compute_on_cpu()  # DeepSpeed reads it when it is imported
for module in ("deepspeed", "torch.distributed.run"):
    importlib.import_module(module)
