"""How much memory sampling takes on each device: the weights and the keys and values of a batch."""

from dataclasses import dataclass

from perpo_pipeline.planning.hardware import GIB
from perpo_pipeline.planning.model import Model
from perpo_pipeline.planning.tokens import PromptTokens
from perpo_pipeline.run import Run


@dataclass(frozen=True)
class Sampling:
    """Bytes of the weights, and of the cache of one prompt with all its answers at their longest.

    `batch_size` prompts are decoded together. vLLM sizes its cache by itself (`own_cache`).
    """

    weights: float
    cache_per_prompt: float
    batch_size: int
    own_cache: bool

    @property
    def total(self) -> float:
        """Bytes of one process; activations are not counted."""
        return self.weights + (0 if self.own_cache else self.batch_size * self.cache_per_prompt)

    def describe(self, usable: float, has: str) -> str:
        """The figures, whether they fit into `usable` bytes, and what to set where they do not."""
        if self.own_cache:
            fits = "fit into" if self.weights <= usable else "are too much for"
            return (
                f"sample: weights {self.weights / GIB:.3g} GiB {fits} {has}; vLLM takes the share "
                "of it that sample.gpu_memory_utilization says"
            )
        shown = (
            f"sample: about {self.total / GIB:.3g} GiB in each process, computed: weights "
            f"{self.weights / GIB:.3g}, cache {(self.total - self.weights) / GIB:.3g} for "
            f"{self.batch_size} prompts"
        )
        if self.total <= usable:
            return f"{shown}; fits into {has}"
        most = int((usable - self.weights) / self.cache_per_prompt)
        advice = f"sample.batch_size={most} fits" if most > 0 else "no batch size fits"
        return f"{shown}; is too much for {has}: {advice}"


def expect_sampling(
    run: Run, model: Model, tokens: PromptTokens | None, backend: str
) -> Sampling | None:
    """The memory of `perpo sample`; None if it is unknown, or taken by a server."""
    if model.shape is None or tokens is None or backend == "openai":
        return None
    shape, config = model.shape, run.config.sample
    per_token = 2 * shape.layers * shape.kv_width * shape.weight_bytes
    longest = max(tokens.whole) + config.num_samples * config.max_new_tokens
    return Sampling(
        shape.parameters * shape.weight_bytes,
        per_token * longest,
        config.batch_size,
        backend == "vllm",
    )
