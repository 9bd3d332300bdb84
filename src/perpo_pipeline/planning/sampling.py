"""How much memory sampling takes on each device: the weights, the keys and values of a batch, and
what a layer computes in passing while the prompts are read."""

from dataclasses import dataclass, replace

from perpo_pipeline.machine import GIB
from perpo_pipeline.planning.model import Model
from perpo_pipeline.planning.tokens import PromptTokens
from perpo_pipeline.run import Run
from perpo_pipeline.train.memory import CONTEXT, working_bytes


@dataclass(frozen=True)
class Sampling:
    """Bytes of the weights, and of the cache of one prompt with all its answers at their longest.

    `batch_size` prompts are decoded together, and `working_per_prompt` is needed while they are
    read; `quantised` are the weights in nf4. vLLM sizes its cache by itself (`own_cache`).
    """

    weights: float
    cache_per_prompt: float
    batch_size: int
    own_cache: bool
    working_per_prompt: float
    quantised: float
    context: float = CONTEXT

    @property
    def per_prompt(self) -> float:
        """Bytes that each prompt of a batch adds."""
        return self.cache_per_prompt + self.working_per_prompt

    @property
    def total(self) -> float:
        """Bytes of one process; the vision tower's activations are not counted."""
        own = 0 if self.own_cache else self.batch_size * self.per_prompt
        return self.weights + self.context + own

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
            f"{self.weights / GIB:.3g}, context {self.context / GIB:.3g}, for "
            f"{self.batch_size} prompts cache {self.batch_size * self.cache_per_prompt / GIB:.3g} "
            f"and working {self.batch_size * self.working_per_prompt / GIB:.3g}"
        )
        if self.total <= usable:
            return f"{shown}; fits into {has}"
        return f"{shown}; is too much for {has}: {self._advice(usable)}"

    def _advice(self, usable: float) -> str:
        left = usable - self.weights - self.context
        if (most := int(left / self.per_prompt)) > 0:
            return f"sample.batch_size={most} fits"
        most = int((left + self.weights - self.quantised) / self.per_prompt)
        if most <= 0:
            return "no batch size fits"
        return (
            f"no batch size fits; with model.quantization=nf4 (weights {self.quantised / GIB:.3g} "
            f"GiB) sample.batch_size={min(most, self.batch_size)} does"
        )


def expect_sampling(
    run: Run, model: Model, tokens: PromptTokens | None, backend: str
) -> Sampling | None:
    """The memory of `perpo sample`; None if it is unknown, or taken by a server."""
    if model.shape is None or tokens is None or backend == "openai":
        return None
    shape, config = model.shape, run.config.sample
    per_token = 2 * (shape.layers - shape.recurrent) * shape.kv_width * shape.weight_bytes
    longest = max(tokens.whole) + config.num_samples * config.longest()
    states = shape.state_bytes * (1 + config.num_samples)  # of the prompt and of each answer
    return Sampling(
        shape.weights,
        per_token * longest + states,
        config.largest_batch,
        backend == "vllm",
        working_bytes(shape, max(tokens.whole)),
        replace(shape, quantization="nf4").weights,
    )
