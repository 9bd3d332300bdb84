"""The settings that sampling and evaluation share: what answers prompts, where, and how many fail.

`Decoding` is what a backend gets of them and of each section's own: how completions are chosen.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge
from pydantic import Field

from perpo_pipeline import advice
from perpo_pipeline.config.by_task import ByTask, of_task, values_of
from perpo_pipeline.config.section import Float, Int, Section

Positive = Annotated[Int, Ge(1)]


@dataclass(frozen=True)
class Decoding:
    """How the completions of a prompt are chosen, each of at most `max_new_tokens` tokens.

    `num_samples` completions are drawn from softmax(logits / temperature), restricted by `top_k`
    and `top_p` after `repetition_penalty`. Temperature 0 is greedy: one completion, with the most
    likely token at every step.
    """

    max_new_tokens: int
    num_samples: int = 1
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


class InferenceConfig(Section):
    """What answers the prompts: a backend, on this machine's processes or on a Ray cluster."""

    operational: ClassVar[frozenset[str]] = frozenset(
        {
            "max_errors",
            "num_gpus",
            "engine",
            "num_actors",
            "ray_address",
            "gpu_memory_utilization",
            "base_url",
            "concurrency",
        }
    )
    by_task: ClassVar[tuple[str, ...]] = ("max_new_tokens", "batch_size")
    section: ClassVar[str]

    backend: Literal["auto", "transformers", "vllm", "openai"] = Field(
        "auto",
        description="what answers the prompts; `auto`: vllm if CUDA is there and vllm is "
        "installed, else transformers; `openai`: any OpenAI-compatible server",
    )
    max_new_tokens: ByTask[Positive] = Field(
        64, description="longest completion, in tokens; may differ by task"
    )
    batch_size: ByTask[Positive] = Field(
        16,
        description="prompts decoded together; counts because another size may round differently; "
        "may differ by task",
    )
    prompts_per_part: Int = Field(
        512, ge=1, description="prompts per file; vLLM answers a file as a whole"
    )
    max_errors: Int = Field(0, ge=0, description="prompts that may fail before the stage fails")
    num_gpus: Int = Field(
        1,
        ge=1,
        description="processes that share the prompts: one per GPU, or several on a CPU (engine "
        "local)",
    )
    engine: Literal["local", "ray"] = Field(
        "local",
        description="where the backend runs: in processes on this machine, or in actors of a Ray "
        f"cluster ({advice.page('sampling')})",
    )
    num_actors: Int | None = Field(
        None,
        ge=1,
        description="Ray actors that share the prompts; none: one per GPU, or one per machine "
        "without GPUs",
    )
    ray_address: str | None = Field(
        None,
        description="the Ray cluster to join: `auto` or host:port; none: RAY_ADDRESS, else a new "
        "cluster on this machine",
    )
    gpu_memory_utilization: Float = Field(
        0.9, gt=0, le=1, description="share of each GPU's memory that vLLM takes"
    )
    base_url: str | None = Field(
        None, description="address of the OpenAI-compatible server, with its /v1 (backend openai)"
    )
    served_model: str | None = Field(
        None, description="the model's name at the server (backend openai); none: `model.id`"
    )
    concurrency: Int = Field(
        16, ge=1, description="requests that are open at a time (backend openai)"
    )

    def decoding(self, task: str | None = None) -> Decoding:
        """How the completions of a prompt of this task are chosen; each section says it.

        Without a task `max_new_tokens` is that of the task with the longest answers.
        """
        raise NotImplementedError

    def longest(self, task: str | None = None) -> int:
        """`max_new_tokens` of a task, or the largest of all tasks."""
        limits = self.max_new_tokens
        return int(of_task(limits, task) if task is not None else max(values_of(limits)))

    @property
    def largest_batch(self) -> int:
        """`batch_size`, or the largest of all tasks."""
        return int(max(values_of(self.batch_size)))

    @property
    def computes_here(self) -> bool:
        """Whether the model is loaded on this machine, not by a server or in a cluster."""
        return self.backend != "openai" and self.engine == "local"

    def key(self, name: str) -> str:
        """A setting as the run's file names it: `sample.backend`."""
        return f"{self.section}.{name}"
