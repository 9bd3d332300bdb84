"""Imports the parts of vLLM that an engine on the CPU needs, and lets it start faster.

vLLM inspects every model class once, in a new Python, so as not to initialise CUDA. On the CPU this
is not needed, and it takes about ten seconds per class until the result is cached.
"""

import importlib.util

from perpo_pipeline.inference.vllm_engine import import_vllm

if importlib.util.find_spec("vllm") is None:
    raise ImportError("vLLM is not installed")

for module in (
    "vllm",
    "vllm.entrypoints.llm",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.lora.request",
    "perpo_pipeline.inference.vllm_backend",
):
    import_vllm(module)

registry = import_vllm("vllm.model_executor.models.registry")
assert callable(registry._run_in_subprocess)
registry._run_in_subprocess = lambda inspect: inspect()
