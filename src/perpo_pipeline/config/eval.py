"""The settings of evaluation."""

from typing import ClassVar, Literal

from pydantic import Field

from perpo_pipeline.config.section import Int, Name, Section


class EvalConfig(Section):
    """What is evaluated, on which split; greedy decoding."""

    operational: ClassVar[frozenset[str]] = frozenset(
        {"models", "conditions", "allow_train_images"}
    )

    split: Name = Field("test", description="the prepared split to evaluate on")
    models: list[Name] | None = Field(
        None, min_length=1, description="models to evaluate; none: base and every trained method"
    )
    conditions: list[Literal["other-image", "blank-image"]] = Field(
        default=["other-image", "blank-image"],
        description="also evaluate each model with another prompt's image, and with a blank one",
    )
    condition_prompts: Int = Field(
        512, gt=0, description="number of prompts in each of the evaluations with a wrong image"
    )
    allow_train_images: bool = Field(
        False, description="evaluate an adapter even on images that it was trained on"
    )
    max_new_tokens: Int = Field(64, ge=1, description="longest completion, in tokens")
    batch_size: Int = Field(64, ge=1, description="prompts decoded together")
    prompts_per_part: Int = Field(
        512, ge=1, description="prompts per file; a killed stage resumes after the last whole file"
    )
