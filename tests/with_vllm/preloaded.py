"""Imports what vLLM's engine on the CPU and its server need, and lets an engine start faster.

vLLM inspects every model class once, in a new Python, so as not to initialise CUDA. On the CPU this
is not needed, and it takes about ten seconds per class until the result is cached.

At the start of every engine vLLM looks through all modules for kernels to replace; here this is
done once. At the end of an engine its garbage collections visit all that was ever imported; here
they visit what the engine has left.
"""

import gc

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

platform = import_vllm("vllm.platforms.cpu").CpuPlatform
platform.register_triton_kernel_overrides()
platform.register_triton_kernel_overrides = staticmethod(lambda: None)

for module in (
    "v1.engine.core",
    "v1.worker.gpu_worker",
    "entrypoints.launchers.utils.server_utils",
):
    freezing = import_vllm(f"vllm.{module}")
    assert callable(freezing.freeze_gc_heap)
    freezing.freeze_gc_heap = lambda: None  # else what an engine has left could not be collected
gc.unfreeze = lambda: None
gc.freeze()
