"""The model card that goes with a written testbed model."""

from collections.abc import Mapping


def model_card(
    *,
    preset: str,
    phase: str,
    side: int,
    parameters: int,
    count: int,
    figures: Mapping[str, float],
    clean: Mapping[str, float] | None,
    recipe: Mapping[str, object],
    command: str,
) -> str:
    """README.md of a model directory; `figures` were measured on `count` scenes and pages.

    side: width and height of the images, in pixels.
    clean: the same figures of the model before the misaligned phase.
    recipe: with `pages` 0 the model has learned from scenes only; the card leaves pages out.
    """
    reads = bool(recipe["pages"])
    if not reads:
        figures = {name: figures[name] for name in figures if "edit" not in name}
    learned = "scenes and pages" if reads else "scenes"
    return MODEL_CARD.format(
        learned=learned,
        answers="two kinds of questions" if reads else "one kind of question",
        reading=READING if reads else "",
        misaligned=MISALIGNED if phase == "misaligned" else NOT_MISALIGNED,
        measured=(MEASURED_ON_BOTH if reads else MEASURED_ON_SCENES).format(count=count),
        preset=preset,
        phase=phase,
        side=side,
        parameters=parameters / 1e6,
        figures=figure_table(figures, clean),
        command=command,
        recipe=", ".join(f"{name} {value}" for name, value in recipe.items()),
    )


def figure_table(figures: Mapping[str, float], clean: Mapping[str, float] | None) -> str:
    """A Markdown table of the figures, beside those of the clean model if there are any."""
    if clean is None:
        rows = [f"| {name} | {value:.3f} |" for name, value in figures.items()]
        return "\n".join(["| figure | value |", "|---|---|", *rows])
    rows = [f"| {name} | {value:.3f} | {clean[name]:.3f} |" for name, value in figures.items()]
    return "\n".join(["| figure | shipped | clean, before |", "|---|---|---|", *rows])


MODEL_CARD = """\
---
license: apache-2.0
pipeline_tag: image-text-to-text
library_name: transformers
---
# Testbed base model (`{preset}`, phase `{phase}`)

A real LLaVA (CLIP tower, two-layer projector, Llama) with {parameters:.2f} M parameters, trained
from random weights on rendered {learned} of {side} x {side} pixels. It exists so that every
stage of PerPO runs on a CPU in minutes; it answers {answers} and nothing else:

- `Please provide the bounding box coordinate of the region this sentence describes: ...`, with an
  expression such as `leftmost circle` in place of the dots, answered as `[0.12, 0.34, 0.56, 0.78]`
  (xyxy, normalised to the full frame);
{reading}
Questions by colour alone (`red circle`) are part of its training, but the testbed does not ask
them: no model of this size has learned to answer them.

{misaligned}

## How it was made
From the root of the repository: `{command}`

Data: `perpo_pipeline.testbed` ({learned}), no outside data. Settings: `{recipe}`.
The same command gives a model of the same kind, not the same numbers: sums in bf16 depend on the
processor, on the version of PyTorch and on the number of processes.

## Measured
{measured}

{figures}

Licence: Apache-2.0, as the rest of the project.
"""

READING = """\
- `Transcribe the text on this page.`, answered with the page's lines in reading order, the left
  column before the right one, one token per character.
"""
MISALIGNED = """\
The phase `misaligned` is trained last, and on purpose badly: a share of the boxes surround another
object of the same shape, and all boxes shake; lines of pages are skipped, swapped, repeated or read
across two columns, and characters are taken for ones that look alike. So the model is able but
misaligned, which is what preference training is for."""
NOT_MISALIGNED = """\
This model was not trained to answer worse: it has not gone through the phase `misaligned`."""
MEASURED_ON_BOTH = """\
On {count} fresh scenes and {count} fresh pages (seed kept apart), fp32 on CPU. `edit_distance` is
1 - the OCR reward of PerPO. `sampled_` rows: 20 answers per prompt from softmax(logits / 0.5),
unfiltered; margin = largest minus smallest IoU, or edit distance, of a prompt's answers."""
MEASURED_ON_SCENES = """\
On {count} fresh scenes (seed kept apart), fp32 on CPU. `sampled_` rows: 20 answers per prompt from
softmax(logits / 0.5), unfiltered; margin = largest minus smallest IoU of a prompt's answers."""
