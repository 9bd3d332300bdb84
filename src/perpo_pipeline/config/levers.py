"""Speed-ups of training that `train.levers` turns on: exact within rounding, not yet measured.

No lever is on by default before a card has measured it. What each one changes, and what it is
expected to save, is in docs/training.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from perpo_pipeline.suggestions import did_you_mean


@dataclass(frozen=True)
class Lever:
    """What one lever does, and what it is expected to save.

    `saves_ms`: milliseconds per prompt at the LLaVA-1.5 grounding shape on an H200 (smallest,
    largest); `source`: `computed`, or a `reading` of the code by others, whose computation is not
    known. `lora_only`: it changes the adapter's layers; `whole_weights`: it reads weights that
    ZeRO-3 shards; `packed`: it needs the shared prefix; `cuda_only`: it changes nothing on the CPU.
    """

    does: str
    saves_ms: tuple[float, float]
    source: Literal["computed", "reading"]
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
        (0.3, 0.6),
        "reading",
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


ZERO_3 = ("zero3", "zero3-offload")


def why_not_zero_3(lever: Lever) -> str | None:
    """Why the lever does not work under ZeRO-3, as `needs ...` or `reads ...`; None if it does."""
    if lever.cuda_only:
        return "needs compiled layers, and ZeRO-3 compiles none"
    return "reads weights that ZeRO-3 shards" if lever.whole_weights else None


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError for a name that is no lever, or that comes twice."""
    if unknown := [name for name in names if name not in LEVERS]:
        near = did_you_mean(unknown[0], LEVERS)
        raise ValueError(f"there is no lever {unknown[0]!r}{near}; one of {', '.join(LEVERS)}")
    if twice := [name for name in LEVERS if list(names).count(name) > 1]:
        raise ValueError(f"{twice[0]} is named twice")


def lever_fault(
    names: Sequence[str],
    *,
    tuning: str,
    forward: str,
    row_lengths: str,
    compiles: bool,
    deepspeed: str | None,
) -> str | None:
    """The fault of levers that do not fit the other settings of a training, or None.

    A DeepSpeed settings file of the user's own is read later, by `check_levers`.
    """
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
        if deepspeed in ZERO_3 and (why := why_not_zero_3(LEVERS[name])):
            return f"levers has {name}, which {why}; remove it, or use deepspeed: zero2"
    return None
