"""How many optimiser steps lists make, and what to do where these are too few to teach anything."""

from collections.abc import Mapping
from math import ceil
from typing import Any

from perpo_pipeline.config.train import TrainSettings

ENOUGH = 50
"""Optimiser steps below which `perpo filter` and `perpo train` warn.

The fewest steps after which we have measured a gain: 400 lists in steps of 8 (docs/choosing.md).
"""


def count_steps(lists: int, settings: TrainSettings) -> int:
    """The optimiser steps of a training on `lists` lists, over all its epochs."""
    return ceil(ceil(lists / settings.batch_size) * settings.epochs)


def lists_for(steps: int, settings: TrainSettings) -> int:
    """The lists that make `steps` optimiser steps of whole batches."""
    return ceil(steps / settings.epochs) * settings.batch_size


def warn_of_few_steps(
    lists: int, trainings: Mapping[str, TrainSettings], counts: Mapping[str, Any], min_margin: float
) -> str | None:
    """A warning where `lists` make fewer than `ENOUGH` steps of some training; None elsewhere.

    It says what each remedy would give. `counts` are those of the preferences' manifest: `lists`
    before filtering, `kept` and `kept_at`; a remedy whose figures are missing is left out.
    """
    few = {name: one for name, one in trainings.items() if count_steps(lists, one) < ENOUGH}
    if not few:
        return None
    name, one = min(few.items(), key=lambda item: count_steps(lists, item[1]))
    steps, needed = count_steps(lists, one), lists_for(ENOUGH, one)
    remedies = [
        *_lower_margin(lists, one, counts, min_margin, needed),
        *_lift_cap(lists, one, counts),
        *_more_prompts(counts, needed),
        _more_epochs(lists, one),
    ]
    others = "" if len(few) == 1 else f" and {len(few) - 1} more"
    return (
        f"{_plural(lists, 'list')} {'makes' if lists == 1 else 'make'} "
        f"{_plural(steps, 'optimiser step')} of {name}{others} (batch_size {one.batch_size}, "
        f"epochs {one.epochs:g}); {ENOUGH} steps need about {needed:,} lists. {ENOUGH} are the "
        "fewest after which a gain was measured (docs/choosing.md). What would help:\n"
        + "\n".join(f"  - {remedy}" for remedy in remedies)
    )


def _lower_margin(
    lists: int, one: TrainSettings, counts: Mapping[str, Any], min_margin: float, needed: int
) -> list[str]:
    """The highest lower threshold that is enough, or else the one that keeps most."""
    kept: dict[str, int] = counts.get("kept_at", {})
    lower = {t: n for t, n in kept.items() if float(t) < min_margin and n > max(lists, 1)}
    if not lower:
        return []
    enough = [t for t, n in lower.items() if n >= needed]
    most = max(lower.values())
    best = max(enough or [t for t, n in lower.items() if n == most], key=float)
    text = f"filter.min_margin {best} keeps {_steps(lower[best], one)}"
    nearest = max(lower, key=float)
    if nearest != best:
        text = f"filter.min_margin {nearest} keeps {_steps(lower[nearest], one)}; {text[7:]}"
    return [text + ("" if enough else ", which is all that these samples can give")]


def _lift_cap(lists: int, one: TrainSettings, counts: Mapping[str, Any]) -> list[str]:
    over = counts.get("dropped", {}).get("over_cap", 0)
    return [f"filter.max_lists null keeps {_steps(lists + over, one)}"] if over else []


def _more_prompts(counts: Mapping[str, Any], needed: int) -> list[str]:
    """How many prompts are needed if as large a share of them gives a list as now."""
    sampled, kept = counts.get("lists", 0), counts.get("kept", 0)
    if not sampled or not kept:
        return []
    more = ceil(needed * sampled / kept) - sampled
    share = f"{kept} of {sampled} prompts gave a list"
    if more <= 0:
        return []
    return [
        f"more prompts: {share}, so 200 more would give about {round(200 * kept / sampled):,} "
        f"lists; {needed:,} lists need about {more:,} more prompts"
    ]


def _more_epochs(lists: int, one: TrainSettings) -> str:
    epochs = ceil(ENOUGH / ceil(lists / one.batch_size))
    return f"train.epochs {epochs} makes {ENOUGH} steps or more, but of the same lists again"


def _steps(lists: int, one: TrainSettings) -> str:
    return f"{_plural(lists, 'list')}, {_plural(count_steps(lists, one), 'step')}"


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)
