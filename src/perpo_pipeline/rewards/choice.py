"""Which reward measures an answer: built in, the user's own by import path, or a weighted sum.

A reward of your own is a function named as `package.module:function`, with the contract of TRL's
reward functions:

    def reward(completions: list[str], **columns) -> list[float]

`columns` are lists as long as `completions`: prompt_id, dataset, task, prompt, width, height (px),
gt_text, gt_box (xyxy, px of the original image), gt_boxes, gt_polygon, each None where the prompt
has none. It returns as many finite numbers in [0, 1], the higher the better, and the same ones for
the same answers: before anything is written it is called on the first rows together
and on each half of them. It is called from
one thread at a time.
"""

import functools
import hashlib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from perpo_pipeline.answers import reading
from perpo_pipeline.errors import ArtifactError, ConfigError, InputError
from perpo_pipeline.rewards import grounding, number, polygon, sets, text
from perpo_pipeline.store.schemas import PROMPTS

Floats = npt.NDArray[np.float64]
Own = Callable[..., Sequence[float]]

OWN_COLUMNS = PROMPTS.pick(
    "prompt_id", "dataset", "task", "prompt", "width", "height", role="truth"
)
TRIED_ROWS = 256


@dataclass(frozen=True)
class Answers:
    """Rows of completions with the truth of their prompts, and how their boxes are to be read."""

    rows: pl.DataFrame
    box_format: str
    box_frame: str

    @property
    def completions(self) -> pl.Series:
        return self.rows["completion"]

    @property
    def texts(self) -> list[str]:
        return cast(list[str], self.rows["gt_text"].to_list())

    def geometry(self) -> dict[str, Any]:
        """The arguments of the readers in answers.py."""
        return {
            "box_format": self.box_format,
            "frame": self.box_frame,
            "sizes": self.rows.select("width", "height").to_numpy(),
            "resized": _resized_sizes(self.rows) if self.box_frame == "resized" else None,
        }

    def true_boxes(self) -> Floats:
        """The true box of each row, (n, 4) xyxy px."""
        flat = self.rows["gt_box"].list.explode().to_numpy()
        return np.asarray(flat, dtype=np.float64).reshape(-1, 4)

    def where(self, mask: npt.NDArray[np.bool_]) -> "Answers":
        """The rows where the mask holds."""
        return Answers(self.rows.filter(pl.Series(mask)), self.box_format, self.box_frame)


@dataclass(frozen=True)
class Measured:
    """Rewards `(n,)` in [0, 1], whether each answer could be read, and its box or NaN `(n, 4)`."""

    rewards: Floats
    parse_ok: npt.NDArray[np.bool_]
    boxes: Floats


@dataclass(frozen=True)
class Reward:
    """A built-in measure and the column of truth that it needs."""

    truth: str
    measure: Callable[[Answers], Measured]

    @property
    def reads_geometry(self) -> bool:
        """Whether the box format and frame decide what an answer says."""
        return self.truth != "gt_text"


def _iou(answers: Answers) -> Measured:
    boxes = reading.read_boxes(answers.completions, **answers.geometry())
    rewards = grounding.iou_xyxy(boxes, answers.true_boxes())
    return Measured(rewards, ~np.isnan(boxes[:, 0]), boxes)


def _point_in_box(answers: Answers) -> Measured:
    points = reading.read_points(answers.completions, **answers.geometry())
    rewards = grounding.points_in_boxes(points, answers.true_boxes())
    return _without_boxes(rewards, ~np.isnan(points[:, 0]))


def _polygon_iou(answers: Answers) -> Measured:
    found = reading.read_polygons(answers.completions, **answers.geometry())
    truth = [np.reshape(flat, (-1, 2)) for flat in answers.rows["gt_polygon"].to_list()]
    return _without_boxes(polygon.polygon_ious(found, truth), [p is not None for p in found])


def _set_iou(answers: Answers) -> Measured:
    found = reading.read_box_lists(answers.completions, **answers.geometry())
    truth = [np.reshape(boxes, (-1, 4)) for boxes in answers.rows["gt_boxes"].to_list()]
    return _without_boxes(
        sets.set_ious(found, truth), [bool((~np.isnan(boxes)).any()) for boxes in found]
    )


def _of_texts(measure: Callable[[Sequence[str], Sequence[str]], Floats]) -> Reward:
    def of_rows(answers: Answers) -> Measured:
        rewards = measure(answers.completions.to_list(), answers.texts)
        return _without_boxes(rewards, np.ones(len(rewards), dtype=bool))

    return Reward("gt_text", of_rows)


def _of_numbers(measure: Callable[[Floats, Floats], Floats]) -> Reward:
    def of_rows(answers: Answers) -> Measured:
        truth = reading.read_numbers(answers.texts)
        if np.isnan(truth).any():
            row = int(np.flatnonzero(np.isnan(truth))[0])
            raise ArtifactError(
                f"the truth {answers.texts[row]!r} of prompt {answers.rows['prompt_id'][row]} "
                "is no number",
                fix="choose a reward for texts, or prepare the data with numbers as gt_text",
            )
        found = reading.read_numbers(answers.completions)
        return _without_boxes(measure(found, truth), ~np.isnan(found))

    return Reward("gt_text", of_rows)


REWARDS: dict[str, Reward] = {
    "iou": Reward("gt_box", _iou),
    "point_in_box": Reward("gt_box", _point_in_box),
    "polygon_iou": Reward("gt_polygon", _polygon_iou),
    "set_iou": Reward("gt_boxes", _set_iou),
    "edit_similarity": _of_texts(text.edit_similarities),
    "character_accuracy": _of_texts(text.character_accuracies),
    "word_accuracy": _of_texts(text.word_accuracies),
    "token_f1": _of_texts(text.token_f1s),
    "exact_match": _of_texts(text.exact_matches),
    "count_match": _of_numbers(number.count_matches),
    "numeric_closeness": _of_numbers(number.numeric_closeness),
}
AUTO = "auto"
# What `auto` takes: the first of a task's rewards whose truth the row has.
REWARDS_OF_TASK = {
    "grounding": ("iou", "polygon_iou", "set_iou"),
    "ocr": ("edit_similarity",),
    "vqa": ("edit_similarity",),
}
# Rewards that are an IoU of one region, and that of several boxes.
RELEASED = "released"  # PerPO's own scores (perpo prepare perpo-json)
IOUS = (AUTO, "iou", "polygon_iou", RELEASED)
TRUTHS = PROMPTS.role("truth")


def reads_geometry(name: str) -> bool:
    """Whether the box format and frame decide what a reward reads, by its name."""
    return name == AUTO or (name in REWARDS and REWARDS[name].reads_geometry)


def measures_iou(weights: Any) -> bool:
    """Whether rewards of grounding, by the settings recorded with them, are IoUs of one region."""
    return isinstance(weights, Mapping) and len(weights) == 1 and next(iter(weights)) in IOUS


def asks_for_set() -> pl.Expr:
    """The prompts that `auto` measures as several boxes: no other truth is there."""
    only = pl.col("gt_box").is_null() & pl.col("gt_polygon").is_null()
    return (pl.col("task") == "grounding") & only & pl.col("gt_boxes").is_not_null()


def columns_of(weights: Mapping[str, float]) -> list[str]:
    """Columns of the prompts that these rewards look at."""
    wanted = ["prompt_id", "task", "width", "height"]
    for name in weights:
        if name == AUTO:
            wanted += TRUTHS
        elif name in REWARDS:
            wanted.append(REWARDS[name].truth)
        else:
            wanted += OWN_COLUMNS
    return list(dict.fromkeys(wanted))


def measure(answers: Answers, weights: Mapping[str, float]) -> Measured:
    """The weighted mean of some rewards; an answer is parsed if every one of them could read it.

    The box is that of the first reward that reads one. Raises `ArtifactError` where the truth that
    a reward needs is missing, `InputError` where the user's own reward breaks its contract.
    """
    parts = [(weight, _measure_one(answers, name)) for name, weight in weights.items()]
    if len(parts) == 1:
        return parts[0][1]
    shares = np.array([weight for weight, _ in parts]) / max(weights.values())
    shares /= shares.sum()  # of weights whose sum would overflow as well
    rewards = np.sum([s * part.rewards for s, (_, part) in zip(shares, parts, strict=True)], axis=0)
    boxes = next((p.boxes for _, p in parts if not np.isnan(p.boxes).all()), parts[0][1].boxes)
    parse_ok = np.all([part.parse_ok for _, part in parts], axis=0)
    return Measured(np.minimum(rewards, 1.0), parse_ok, boxes)


def _measure_one(answers: Answers, name: str) -> Measured:
    if name == AUTO:
        return _measure_by_task(answers)
    if name not in REWARDS:
        return _measure_own(answers, name)
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
    found = _without_boxes(np.zeros(len(chosen)), np.zeros(len(chosen), dtype=bool))
    for name in np.unique(chosen):
        mask = chosen == name
        part = _measure_one(answers.where(mask), str(name))
        found.rewards[mask], found.parse_ok[mask] = part.rewards, part.parse_ok
        found.boxes[mask] = part.boxes
    return found


def _choose_by_task(rows: pl.DataFrame) -> npt.NDArray[np.str_]:
    """The name of each row's reward; where no truth is there, the task's first, which says so."""
    of_task = [(pl.col("task") == task, names) for task, names in REWARDS_OF_TASK.items()]
    choices = [
        pl.when(is_task & pl.col(REWARDS[name].truth).is_not_null()).then(pl.lit(name))
        for is_task, names in of_task
        for name in names
    ]
    choices += [pl.when(is_task).then(pl.lit(names[0])) for is_task, names in of_task]
    return cast(npt.NDArray[np.str_], rows.select(pl.coalesce(choices)).to_series().to_numpy())


def _without_boxes(rewards: Floats, parse_ok: npt.ArrayLike) -> Measured:
    nowhere = np.full((len(rewards), 4), np.nan)
    return Measured(rewards, np.asarray(parse_ok, dtype=bool), nowhere)


def _resized_sizes(rows: pl.DataFrame) -> npt.NDArray[np.int32]:
    """The size of the resized image of each answer, (n, 2)."""
    missing = rows.filter(pl.col("resized").is_null())
    if missing.height:
        raise ArtifactError(
            f"box_frame 'resized' needs the size of the resized image, which {missing.height} "
            f"answers lack, the first of prompt {missing['prompt_id'][0]}",
            fix="rerun `perpo sample`; for a model that cuts images into tiles, which has no such "
            "size, choose another model.box_frame",
        )
    flat = rows["resized"].list.explode().to_numpy()
    return np.asarray(flat, dtype=np.int32).reshape(-1, 2)


@functools.cache
def load_own(name: str) -> Own:
    """The user's function at the import path `package.module:function`; raises ConfigError."""
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(
            f"there is no reward {name!r}",
            fix=f"one of {AUTO}, {', '.join(REWARDS)}, or your own as package.module:function",
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ConfigError(
            f"the reward {name!r} cannot be imported: {_told(error)}",
            fix="give a module on the Python path (PYTHONPATH=. for one beside you) and the name "
            "of a function in it",
        ) from error
    if not callable(found):
        raise ConfigError(
            f"the reward {name!r} is no function but of type {type(found).__name__}",
            fix="name a function with the contract of README, 'Scoring'",
        )
    return cast(Own, found)


def own_rewards(weights: Mapping[str, float]) -> dict[str, str]:
    """The user's own rewards among these, each with the sha256 of the file it is in.

    The hash belongs in the fingerprint: a changed function gives other rewards.
    """
    own = [name for name in weights if name != AUTO and name not in REWARDS]
    return {name: _source_sha256(load_own(name)) for name in own}


def _source_sha256(function: Own) -> str:
    inner: Any = inspect.unwrap(function)
    while isinstance(inner, functools.partial):
        inner = inner.func
    try:
        file = inspect.getsourcefile(inner if inspect.isroutine(inner) else type(inner))
        return hashlib.sha256(Path(str(file)).read_bytes()).hexdigest()
    except (TypeError, OSError) as error:
        raise ConfigError(
            f"the source of the reward {inner!r} cannot be found, so it cannot be told from a "
            f"changed one: {error}",
            fix="give a function that is written in a Python file",
        ) from error


def _measure_own(answers: Answers, name: str) -> Measured:
    rewards = _call_own(answers.rows, name)
    return _without_boxes(rewards, np.ones(len(rewards), dtype=bool))


def try_own(answers: Answers, name: str) -> None:
    """Call the user's reward on the first rows, and on each half of them; raises `InputError` where
    an answer then gets another reward."""
    some = answers.rows.head(TRIED_ROWS)
    half = some.height // 2
    halves = [part for part in (some[half:], some[:half]) if part.height]
    first = _call_own(some, name)
    second = np.roll(np.concatenate([_call_own(part, name) for part in halves]), half)
    differ = np.flatnonzero(first != second)
    if differ.size:
        row = int(differ[0])
        raise InputError(
            f"the reward '{name}' gives {first[row]} and then {second[row]} for the same answer",
            where=_place(some, row),
            fix="make it a function of each answer and its truth alone: neither random, nor of the "
            "other answers of the call",
        )


def _call_own(rows: pl.DataFrame, name: str) -> Floats:
    columns = {column: rows[column].to_list() for column in OWN_COLUMNS}
    reward = load_own(name)
    try:
        returned = reward(rows["completion"].to_list(), **columns)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InputError(
            f"the reward '{name}' raised {_told(error)}",
            where=f"{_place(rows, 0)} and the {rows.height - 1} rows after it",
            fix="correct the function (the corrected one scores all rows anew)",
        ) from error
    return _checked(returned, rows, name)


def _told(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 (an exception that cannot even say what it is)
        return type(error).__name__


def _checked(returned: Any, rows: pl.DataFrame, name: str) -> Floats:
    contract = f"return a list of {rows.height} finite numbers from 0 to 1, one a completion"
    try:
        array = np.asarray(returned)
        if array.dtype.kind not in "biuf" and array.size:
            raise TypeError(f"it holds {array.dtype}")
        values = array.astype(np.float64)
    except Exception as error:  # a tensor that needs a gradient, rows of other lengths, ...
        raise InputError(
            f"the reward '{name}' returned what is no list of numbers: {_told(error)}",
            where=_place(rows, 0),
            fix=contract,
        ) from error
    if values.shape != (rows.height,):
        raise InputError(
            f"the reward '{name}' returned the shape {values.shape} for {rows.height} completions",
            where=_place(rows, 0),
            fix=contract,
        )
    bad = np.flatnonzero(~((values >= 0) & (values <= 1)))  # NaN is neither
    if bad.size:
        raise InputError(
            f"the reward '{name}' returned {values[bad[0]]} ({bad.size} values are not in [0, 1])",
            where=_place(rows, int(bad[0])),
            fix=contract,
        )
    return values


def _place(rows: pl.DataFrame, row: int) -> str:
    return f"prompt {rows['prompt_id'][row]}, completion {rows['completion'][row][:80]!r}"
