"""Where prompts come from: one pydantic model a kind of dataset (the `prepare` section)."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from perpo_pipeline.settings import Int, Section


class TestbedSource(Section):
    """Prompts rendered by the embedded testbed."""

    source: Literal["testbed"]
    num_prompts: Int = Field(gt=0)


class JsonlSource(Section):
    """Prompts from a plain JSON-lines file (README, 'Your own data')."""

    source: Literal["jsonl"]
    path: Path
    image_root: Path | None = Field(None, description="default: the folder of the file")
    task: Literal["grounding", "ocr", "vqa"] | None = Field(None, description="for rows without")
    embed_images: bool = False
    per_dataset: Int | None = Field(None, gt=0, description="at most so many rows of each dataset")


PrepareConfig = Annotated[TestbedSource | JsonlSource, Field(discriminator="source")]
