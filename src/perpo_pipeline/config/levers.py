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
    shared prefix.
    """

    does: str
    saves_ms: tuple[float, float]
    source: Literal["prototype", "computed"]
    lora_only: bool = False
    whole_weights: bool = False
    packed: bool = False


LEVERS: dict[str, Lever] = {
    "lora-addmm": Lever(
        "LoRA's second product is added by the matrix kernel onto the base layer's output",
        (1.1, 1.4),
        "computed",
        lora_only=True,
        whole_weights=True,
    ),
    "joined-lora": Lever(
        "one first product of LoRA for q, k and v, and one for gate and up",
        (0.5, 0.5),
        "computed",
        lora_only=True,
        whole_weights=True,
    ),
}


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError for a name that is no lever, or that comes twice."""
    if unknown := [name for name in names if name not in LEVERS]:
        raise ValueError(f"there is no lever {unknown[0]!r}; one of {', '.join(LEVERS)}")
    if twice := [name for name in LEVERS if list(names).count(name) > 1]:
        raise ValueError(f"{twice[0]} is named twice")


def lever_fault(names: Sequence[str], *, tuning: str, forward: str) -> str | None:
    """The fault of levers that do not fit the other settings of a training, or None."""
    for name in names:
        if LEVERS[name].lora_only and tuning != "lora":
            return f"levers has {name}, which needs tuning: lora; remove it"
        if LEVERS[name].packed and forward == "separate":
            return f"levers has {name}, which needs a shared prefix (forward: auto); remove it"
    return None
