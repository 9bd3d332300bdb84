"""The model card that goes with a written testbed model."""

from collections.abc import Mapping


def model_card(
    *,
    preset: str,
    phase: str,
    parameters: int,
    count: int,
    figures: Mapping[str, float],
    recipe: Mapping[str, object],
    command: str,
) -> str:
    """README.md of a model directory; `figures` were measured on `count` fresh scenes."""
    return MODEL_CARD.format(
        preset=preset,
        phase=phase,
        parameters=parameters / 1e6,
        count=count,
        figures="\n".join(f"| {name} | {value:.3f} |" for name, value in figures.items()),
        command=command,
        recipe=", ".join(f"{name} {value}" for name, value in recipe.items()),
    )


MODEL_CARD = """\
---
license: apache-2.0
pipeline_tag: image-text-to-text
library_name: transformers
---
# Testbed base model (`{preset}`, phase `{phase}`)

A real LLaVA (CLIP tower, two-layer projector, Llama) with {parameters:.2f} M parameters, trained
from random weights on rendered referring scenes. It exists so that every stage of PerPO runs on a
CPU in minutes; it answers one kind of question and nothing else:
`Please provide the bounding box coordinate of the region this sentence describes: red circle`,
answered as `[0.12, 0.34, 0.56, 0.78]` (xyxy, normalised to the full frame).

The phase `misaligned` is trained last, and on purpose badly: a share of its answers point to
another object of the same shape, and all boxes shake. So the model is able but misaligned, which
is what preference training is for.

## How it was made
From the root of the repository: `{command}`

Data: `perpo_pipeline.testbed.scenes`, no outside data. Settings: `{recipe}`.

## Measured
On {count} fresh scenes (seed kept apart), fp32 on CPU; `sampled_` rows: 20 answers per prompt from
softmax(logits / 0.5), unfiltered; margin = largest minus smallest IoU of a prompt's answers.

| figure | value |
|---|---|
{figures}

Licence: Apache-2.0, as the rest of the project.
"""
