"""Which reward measures an answer: a built-in one, the user's own, `auto`, or a weighted mean."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.rewards.builtin import (
    AUTO,
    REWARDS,
    REWARDS_OF_TASK,
    Answers,
    Measured,
    measured_without_boxes,
)
from perpo_pipeline.rewards.own import (
    ANSWER_BOX,
    ANSWER_BOXES,
    EXTRA,
    OWN_COLUMNS,
    asked_for,
    measure_own,
)
from perpo_pipeline.store.schemas import PROMPTS

RELEASED = "released"
"""PerPO's own scores (`perpo prepare perpo-json`), which are IoUs of one box."""

TRUTHS = PROMPTS.role("truth")


def reads_geometry(name: str) -> bool:
    """Whether the box format and frame decide what the reward of that name reads."""
    if name == AUTO or name in REWARDS:
        return name == AUTO or REWARDS[name].reads_geometry
    return ":" in name and bool(asked_for(name) & {ANSWER_BOX, ANSWER_BOXES})


def compares_texts(name: str) -> bool:
    """Whether the reward of that name compares texts, which may be normalised before."""
    return name == AUTO or (name in REWARDS and REWARDS[name].compares_texts)


def measures_iou(weights: Any) -> bool:
    """Whether grounding rewards are IoUs of one region, by the settings recorded with them."""
    if not (isinstance(weights, Mapping) and len(weights) == 1):
        return False
    name = next(iter(weights))
    return name in (AUTO, RELEASED) or (name in REWARDS and REWARDS[name].is_iou)


def asks_for_set() -> pl.Expr:
    """The prompts that `auto` measures as any number of boxes: they have no other truth."""
    only = pl.col("gt_box").is_null() & pl.col("gt_polygon").is_null()
    return (pl.col("task") == "grounding") & only & pl.col("gt_boxes").is_not_null()


def asks_for_point() -> pl.Expr:
    """The prompts that `auto` measures as a point: they have no other truth."""
    others = [pl.col(name).is_null() for name in ("gt_box", "gt_polygon", "gt_boxes")]
    is_only = pl.all_horizontal(others) & pl.col("gt_point").is_not_null()
    return (pl.col("task") == "grounding") & is_only


def has_no_target() -> pl.Expr:
    """Those of them whose truth is that nothing is there."""
    return asks_for_set() & (pl.col("gt_boxes").list.len() == 0)


def columns_of(weights: Mapping[str, float]) -> list[str]:
    """Columns of the prompts that these rewards read."""
    wanted = ["prompt_id", "task", "width", "height"]
    for name in weights:
        if name == AUTO:
            wanted += TRUTHS
        elif name in REWARDS:
            wanted.append(REWARDS[name].truth)
        else:
            wanted += [*OWN_COLUMNS, EXTRA]
    return list(dict.fromkeys(wanted))


def measure(answers: Answers, weights: Mapping[str, float]) -> Measured:
    """The weighted mean of some rewards; an answer is parsed if every one of them could read it.

    The box is that of the first reward that reads one. Raises `ArtifactError` where the truth that
    a reward needs is missing, `InputError` where the user's own reward breaks its contract.
    """
    parts = [(weight, _measure_one(answers, name)) for name, weight in weights.items()]
    if len(parts) == 1:
        return parts[0][1]
    # Divided by the largest first, because the sum of large weights would overflow.
    shares = np.array([weight for weight, _ in parts]) / max(weights.values())
    shares /= shares.sum()
    rewards = np.sum([s * part.rewards for s, (_, part) in zip(shares, parts, strict=True)], axis=0)
    boxes = next((p.boxes for _, p in parts if not np.isnan(p.boxes).all()), parts[0][1].boxes)
    parse_ok = np.all([part.parse_ok for _, part in parts], axis=0)
    reach = next((p.reach for _, p in parts if p.reach is not None), None)
    return Measured(np.minimum(rewards, 1.0), parse_ok, boxes, reach)


def _measure_one(answers: Answers, name: str) -> Measured:
    if name == AUTO:
        return _measure_by_task(answers)
    if name not in REWARDS:
        return measure_own(answers, name)
    reward = REWARDS[name]
    missing = answers.rows.filter(pl.col(reward.truth).is_null())
    if missing.height:
        raise ArtifactError(
            f"the reward '{name}' has no truth to measure against ({reward.truth}) in "
            f"{missing.height} rows, the first of prompt {missing['prompt_id'][0]}",
            fix="choose the reward that fits the task, or prepare the data with its truth",
        )
    return reward.measure(answers)


def _measure_by_task(answers: Answers) -> Measured:
    """Each row by the reward of its task and truth."""
    chosen = _choose_by_task(answers.rows)
    reach = np.full((len(chosen), 2), np.nan)
    found = measured_without_boxes(np.zeros(len(chosen)), np.zeros(len(chosen), dtype=bool), reach)
    for name in np.unique(chosen):
        mask = chosen == name
        part = _measure_one(answers.where(mask), str(name))
        found.rewards[mask], found.parse_ok[mask] = part.rewards, part.parse_ok
        found.boxes[mask] = part.boxes
        if part.reach is not None:
            reach[mask] = part.reach
    return found


def _choose_by_task(rows: pl.DataFrame) -> npt.NDArray[np.str_]:
    """The name of each row's reward; without truth the task's first, which reports that."""
    of_task = [(pl.col("task") == task, names) for task, names in REWARDS_OF_TASK.items()]
    choices = [
        pl.when(is_task & pl.col(REWARDS[name].truth).is_not_null()).then(pl.lit(name))
        for is_task, names in of_task
        for name in names
    ]
    choices += [pl.when(is_task).then(pl.lit(names[0])) for is_task, names in of_task]
    return cast(npt.NDArray[np.str_], rows.select(pl.coalesce(choices)).to_series().to_numpy())
