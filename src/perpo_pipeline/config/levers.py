"""Speed-ups of training that `train.levers` turns on: exact within rounding, not yet measured.

No lever is on by default before a card has measured it. What each one changes, and what it is
expected to save, is in docs/training.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Lever:
    """What one lever does, and what it is expected to save.

    `saves_ms`: milliseconds per prompt at the LLaVA-1.5 grounding shape on an H200 (smallest,
    largest); `source`: a `prototype` that was timed, or `computed`. `lora_only`: it changes the
    adapter's layers; `whole_weights`: it reads weights that ZeRO-3 shards; `packed`: it needs the
    shared prefix; `cuda_only`: it changes nothing on the CPU.
    """

    does: str
    saves_ms: tuple[float, float]
    source: Literal["prototype", "computed"]
    lora_only: bool = False
    whole_weights: bool = False
    packed: bool = False
    cuda_only: bool = False


LEVERS: dict[str, Lever] = {
    "flash-parts": Lever(
        "attention as two flash calls, of the prefixes and answers and of the answers to their "
        "prefix, joined by log-sum-exp",
        (3.0, 5.0),
        "computed",
        packed=True,
    ),
    "flex-autotune": Lever(
        "FlexAttention tries block sizes when a layer is compiled, and keeps the fastest",
        (3.0, 5.0),
        "computed",
        packed=True,
        cuda_only=True,
    ),
    "lora-addmm": Lever(
        "LoRA's second product is added by the matrix kernel onto the base layer's output",
        (1.1, 1.4),
        "computed",
        lora_only=True,
        whole_weights=True,
    ),
    "whole-head": Lever(
        "the head in one chunk where memory allows, not computed again in the backward pass",
        (0.6, 0.6),
        "computed",
    ),
    "last-layer": Lever(
        "the last decoder layer's feed-forward part only where a token predicts",
        (0.5, 0.5),
        "computed",
        packed=True,
    ),
    "joined-lora": Lever(
        "one first product of LoRA for q, k and v, and one for gate and up",
        (0.5, 0.5),
        "computed",
        lora_only=True,
        whole_weights=True,
    ),
    "compiled-tower": Lever(
        "compiled layers of the vision tower, where all images have one size",
        (0.2, 0.2),
        "computed",
        whole_weights=True,
    ),
}


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError for a name that is no lever, or that comes twice."""
    if unknown := [name for name in names if name not in LEVERS]:
        raise ValueError(f"there is no lever {unknown[0]!r}; one of {', '.join(LEVERS)}")
    if twice := [name for name in LEVERS if list(names).count(name) > 1]:
        raise ValueError(f"{twice[0]} is named twice")


def lever_fault(
    names: Sequence[str], *, tuning: str, forward: str, row_lengths: str, compiles: bool
) -> str | None:
    """The fault of levers that do not fit the other settings of a training, or None."""
    if {"flash-parts", "flex-autotune"} <= set(names):
        return "levers has flash-parts and flex-autotune, of which one can be used; remove one"
    if "flex-autotune" in names and not compiles:
        return "levers has flex-autotune, which needs compiled layers; remove compile: false"
    if "flash-parts" in names and row_lengths == "bucketed":
        return "levers has flash-parts, which needs row_lengths: any; remove one of them"
    for name in names:
        if LEVERS[name].lora_only and tuning != "lora":
            return f"levers has {name}, which needs tuning: lora; remove it"
        if LEVERS[name].packed and forward == "separate":
            return f"levers has {name}, which needs a shared prefix (forward: auto); remove it"
    return None
