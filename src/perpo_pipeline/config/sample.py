"""The settings of sampling."""

from typing import ClassVar, Literal

from pydantic import Field

from perpo_pipeline.config.section import Float, Int, Name, Section


class SampleConfig(Section):
    """How the candidates are drawn: from softmax(logits / T) and nothing else."""

    operational: ClassVar[frozenset[str]] = frozenset(
        {
            "max_errors",
            "split",
            "num_gpus",
            "gpu_memory_utilization",
            "base_url",
            "concurrency",
            "preview_reward",
            "engine",
            "num_actors",
            "ray_address",
        }
    )

    split: Name = Field("train", description="the prepared split to sample from")
    backend: Literal["auto", "transformers", "vllm", "openai"] = Field(
        "auto",
        description="what draws the completions; `auto`: vllm if CUDA is there and vllm is "
        "installed, else transformers; `openai`: any OpenAI-compatible server",
    )
    num_samples: Int = Field(20, ge=1, description="completions per prompt")
    temperature: Float = Field(0.5, gt=0, description="T of softmax(logits / T)")
    top_k: Int | None = Field(
        None, ge=1, description="draw from the k likeliest tokens; none: the whole vocabulary"
    )
    top_p: Float = Field(
        1.0, gt=0, le=1, description="draw from the fewest tokens whose probabilities sum to this"
    )
    repetition_penalty: Float = Field(
        1.0, gt=0, description="divides the logits of tokens that were used before; 1: off"
    )
    max_new_tokens: Int = Field(64, ge=1, description="longest completion, in tokens")
    batch_size: Int = Field(
        16,
        ge=1,
        description="prompts decoded together; counts because another size may round differently",
    )
    prompts_per_part: Int = Field(
        512, ge=1, description="prompts per file; a killed stage resumes after the last whole file"
    )
    max_errors: Int = Field(0, ge=0, description="prompts that may fail before the stage fails")
    num_gpus: Int = Field(
        1, ge=1, description="processes that share the prompts, one per GPU (engine local)"
    )
    engine: Literal["local", "ray"] = Field(
        "local",
        description="who draws: processes on this machine, or actors of a Ray cluster "
        "(docs/sampling.md)",
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
    preview_reward: Literal["iou", "edit_similarity"] | None = Field(
        None,
        description="reward whose running mean, with the parse rate, is shown during sampling for "
        "prompts that have a ground truth",
    )
