"""How many optimiser steps lists make, and what to do where these are too few to teach anything."""

from collections.abc import Mapping
from math import ceil
from types import MappingProxyType
from typing import Any

from perpo_pipeline import advice
from perpo_pipeline.config.by_task import of_task
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


def say_few_steps(lists: int, trainings: Mapping[str, TrainSettings]) -> str | None:
    """The sentence about the training with the fewest steps; None unless these are too few."""
    few = _with_few_steps(lists, trainings)
    if not few:
        return None
    one = next(iter(few.values()))
    steps, needed = count_steps(lists, one), lists_for(ENOUGH, one)
    alike = [other for other, settings in few.items() if count_steps(lists, settings) == steps]
    names = " and ".join(alike) if len(alike) < 4 else f"{alike[0]} and {len(alike) - 1} others"
    return (
        f"{_plural(lists, 'list')} {'makes' if lists == 1 else 'make'} "
        f"{_plural(steps, 'optimiser step')} of {names} (batch_size {one.batch_size}, "
        f"epochs {one.epochs:g}); {ENOUGH} steps need about {needed:,} lists. {ENOUGH} are the "
        f"fewest after which a clear gain was measured ({advice.page('choosing')})."
    )


def warn_of_few_lists(
    trainings: Mapping[str, TrainSettings],
    counts: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    earlier: Mapping[str, int] = MappingProxyType({}),
) -> list[str]:
    """A warning for each task with too few lists for the trainings that learn it.

    `counts` has the counts of each task with new lists, as `warn_of_few_steps` reads them;
    `earlier` the earlier lists of each task, which may be another one. `settings` are those of the
    preferences' manifest.
    """
    warnings = []
    tasks = [*counts, *(task for task in earlier if task not in counts)]
    for task in tasks:
        of_one, old = counts.get(task, {}), earlier.get(task, 0)
        learn_it = {name: one for name, one in trainings.items() if one.learns(task)}
        own = {
            name: of_task(settings.get(name), task)
            for name in ("min_margin", "max_lists")
            if task in counts  # a setting by task may not name a task without new lists
        }
        lists = of_one.get("kept", 0) + old
        if warning := warn_of_few_steps(lists, learn_it, of_one, own, earlier=old):
            for name in own:
                if isinstance(settings.get(name), Mapping):
                    warning = warning.replace(name, f"{name}.{task}")
            warnings.append(warning if len(tasks) == 1 else f"{task} alone: {warning}")
    return warnings


def warn_of_few_steps(
    lists: int,
    trainings: Mapping[str, TrainSettings],
    counts: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    earlier: int = 0,
) -> str | None:
    """A warning where `lists` make fewer than `ENOUGH` steps of some training; None elsewhere.

    It says what each remedy would give. `counts` and `settings` are those of the preferences'
    manifest: `lists` before filtering, `kept`, `kept_at` and `dropped`, `min_margin` and
    `max_lists`; a remedy whose figures are missing is left out. `earlier` of the `lists` are
    earlier ones, which are not in `counts`: no remedy changes them.
    """
    sentence = say_few_steps(lists, trainings)
    if sentence is None:
        return None
    one = next(iter(_with_few_steps(lists, trainings).values()))
    needed = lists_for(ENOUGH, one)
    remedies = [
        *_keep_more(lists, one, counts, settings, needed, earlier),
        *_more_prompts(counts, settings, needed, earlier),
        *_more_epochs(lists, one),
    ]
    if not remedies:
        return sentence
    return f"{sentence} What would help:\n" + "\n".join(f"  - {remedy}" for remedy in remedies)


def _with_few_steps(lists: int, trainings: Mapping[str, TrainSettings]) -> dict[str, TrainSettings]:
    """The trainings that make fewer than `ENOUGH` steps, the one with the fewest first."""
    steps = {name: count_steps(lists, one) for name, one in trainings.items()}
    return {
        name: trainings[name]
        for name in sorted(steps, key=steps.__getitem__)
        if steps[name] < ENOUGH
    }


def _keep_more(
    lists: int,
    one: TrainSettings,
    counts: Mapping[str, Any],
    settings: Mapping[str, Any],
    needed: int,
    earlier: int,
) -> list[str]:
    """What a higher cap gives where it is reached, and what a lower threshold gives elsewhere."""
    over = _over_cap(counts)
    if over:
        return [f"filter.max_lists null keeps {_steps(lists + over, one)}"]
    cap, kept = settings.get("max_lists"), counts.get("kept_at", {})
    most = {t: earlier + (n if cap is None else min(n, cap)) for t, n in kept.items()}
    margin = settings.get("min_margin", 0.0)
    lower = {t: n for t, n in most.items() if float(t) < margin and n > max(lists, 1)}
    if not lower:
        return []
    enough = [t for t, n in lower.items() if n >= needed]
    best = max(enough or [t for t, n in lower.items() if n == max(lower.values())], key=float)
    nearest = max(lower, key=float)
    text = f"min_margin {best} keeps {_steps(lower[best], one)}"
    if nearest != best:
        text = f"min_margin {nearest} keeps {_steps(lower[nearest], one)}; {text}"
    return [f"filter.{text}" + ("" if enough else ", the most that these samples can give")]


def _over_cap(counts: Mapping[str, Any]) -> int:
    return int(counts.get("dropped", {}).get("over_cap", 0))


def _more_prompts(
    counts: Mapping[str, Any], settings: Mapping[str, Any], needed: int, earlier: int
) -> list[str]:
    """How many prompts are needed if as large a share of them gives a list as now."""
    needed -= earlier
    kind = "new lists" if earlier else "lists"
    sampled, kept = counts.get("lists", 0), counts.get("kept", 0) + _over_cap(counts)
    if not sampled or not kept:
        return []
    more, cap = ceil(needed * sampled / kept) - sampled, settings.get("max_lists")
    if more <= 0:
        return []
    capped = cap is not None and cap < needed
    return [
        f"more prompts: {kept:,} of {sampled:,} gave a list, so 200 more would give about "
        f"{round(200 * kept / sampled):,} lists; {needed:,} {kind} need about {more:,} more prompts"
        + (f", and filter.max_lists of {needed:,} or more" if capped else "")
    ]


def _more_epochs(lists: int, one: TrainSettings) -> list[str]:
    if not lists:
        return []
    epochs = ceil(ENOUGH / ceil(lists / one.batch_size))
    return [f"train.epochs {epochs} makes {ENOUGH} steps or more, but from the same lists again"]


def _steps(lists: int, one: TrainSettings) -> str:
    return f"{_plural(lists, 'list')}, {_plural(count_steps(lists, one), 'step')}"


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)
