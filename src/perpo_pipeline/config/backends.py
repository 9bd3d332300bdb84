"""The backends by name.

To add a backend, write its class (see `inference/backend.py`), add one entry to BACKENDS, and add
its name to `InferenceConfig.backend`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class BackendEntry:
    """One backend: `factory` is its class as package.module:attribute.

    `ignores` names settings of `sample` and `eval` that this backend never reads. They do not count
    in the fingerprint of what it answers.
    """

    factory: str
    ignores: tuple[str, ...] = ()


BACKENDS = {
    "transformers": BackendEntry(
        "perpo_pipeline.inference.transformers_backend:TransformersBackend",
        ignores=("served_model",),
    ),
    "vllm": BackendEntry(
        "perpo_pipeline.inference.vllm_backend:VllmBackend",
        ignores=("served_model", "batch_size"),
    ),
    "openai": BackendEntry(
        "perpo_pipeline.inference.openai_backend:OpenAIBackend",
        ignores=("batch_size",),
    ),
}
