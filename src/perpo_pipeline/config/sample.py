"""The settings of sampling."""

from typing import ClassVar, Literal

from pydantic import Field

from perpo_pipeline.config.inference import Decoding, InferenceConfig
from perpo_pipeline.config.section import Float, Int, Name

MOST_SAMPLES = 100_000
"""Ten times the 10,000 of Brown et al. 2024 (arXiv:2407.21787); a list of all fits into memory."""


class SampleConfig(InferenceConfig):
    """How the candidates are drawn: from softmax(logits / T) and nothing else."""

    section: ClassVar[str] = "sample"
    operational: ClassVar[frozenset[str]] = InferenceConfig.operational | {
        "split",
        "preview_reward",
    }

    split: Name = Field("train", description="the prepared split to sample from")
    num_samples: Int = Field(20, ge=1, le=MOST_SAMPLES, description="completions per prompt")
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
    preview_reward: Literal["iou", "edit_similarity"] | None = Field(
        None,
        description="reward whose running mean, with the parse rate, is shown during sampling for "
        "prompts that have a ground truth",
    )

    def decoding(self, task: str | None = None) -> Decoding:
        """How the completions of a prompt are drawn."""
        return Decoding(
            max_new_tokens=self.longest(task),
            num_samples=self.num_samples,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
        )
