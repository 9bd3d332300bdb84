"""Imports what vLLM's engine on the CPU and its server need, and lets an engine start faster.

vLLM inspects every model class once, in a new Python, so as not to initialise CUDA. On the CPU this
is not needed, and it takes about ten seconds per class until the result is cached.
"""

from perpo_pipeline.inference.vllm_engine import import_vllm

for module in (
    "vllm",
    "vllm.entrypoints.llm",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.lora.request",
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "perpo_pipeline.inference.vllm_backend",
):
    import_vllm(module)

registry = import_vllm("vllm.model_executor.models.registry")
assert callable(registry._run_in_subprocess)
registry._run_in_subprocess = lambda inspect: inspect()
