"""A user's own reward: a function named by its import path, called under a checked contract.

It is named as `package.module:function` and follows the contract of TRL's reward functions:

    def reward(completions: list[str], **columns) -> list[float]

`completions` are the texts of the answers, without thoughts and tags (answers/pipeline.py). A
completion that holds no answer, such as a cut-off thought, is not passed: it is unparsed, and its
reward is 0. `columns` are lists as long as `completions`: whole_completions (as the model wrote
them), prompt_id, dataset, task, prompt, width, height (px), gt_text, gt_box (xyxy, px of the
original image), gt_boxes, gt_polygon, gt_point, each None where the prompt has none.

Three more are made for a function that names them among its parameters: answer_box, the box that
was read from each answer (xyxy, px of the original image, as the built-in rewards read it; None
where there is none, and such an answer is unparsed); answer_boxes, all of them, in order (None for
a box that is on no image); and extra, the other columns of the data, as a dict. The box format and
frame count in the fingerprint of scores if a box is asked for.

The function returns one finite number in [0, 1] per completion; higher is better. The same answer
must always get the same number: before anything is written, the function is called on the first
rows together and on each half of them. Only one thread calls it at a time.
"""

import functools
import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl

from perpo_pipeline import advice
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.rewards.builtin import (
    AUTO,
    REWARDS,
    Answers,
    Floats,
    Measured,
    measured_without_boxes,
)
from perpo_pipeline.store.schemas import PROMPTS

OwnReward = Callable[..., Sequence[float]]

OWN_COLUMNS = PROMPTS.pick(
    "prompt_id", "dataset", "task", "prompt", "width", "height", role="truth"
)
EXTRA = "extra"
ANSWER_BOX, ANSWER_BOXES = "answer_box", "answer_boxes"
TRIED_ROWS = 256


@functools.cache
def load_own(name: str) -> OwnReward:
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
            f"the reward {name!r} cannot be imported: {_describe(error)}",
            fix="give a module on the Python path (PYTHONPATH=. for one in this directory) and the "
            "name of a function in it",
        ) from error
    if not callable(found):
        raise ConfigError(
            f"the reward {name!r} has type {type(found).__name__} and is not callable",
            fix="name a function that follows the contract of rewards "
            f"(see {advice.page('rewards')})",
        )
    return cast(OwnReward, found)


def own_rewards(weights: Mapping[str, float]) -> dict[str, str]:
    """The user's own rewards among these, each with the sha256 of the file that defines it.

    The hash belongs in the fingerprint: a changed function gives other rewards.
    """
    own = [name for name in weights if name != AUTO and name not in REWARDS]
    return {name: _source_sha256(load_own(name)) for name in own}


def asked_for(name: str) -> frozenset[str]:
    """Those of answer_box, answer_boxes and extra that the user's reward names as parameters."""
    named = _parameters(load_own(name))
    return frozenset({ANSWER_BOX, ANSWER_BOXES, EXTRA} & named)


def measure_own(answers: Answers, name: str) -> Measured:
    """What the user's reward gives each answer; raises `InputError` if it breaks its contract."""
    is_answer = answers.texts.is_not_null().to_numpy()
    rewards = np.zeros(len(is_answer))
    if is_answer.any():
        rewards[is_answer] = _call_own(answers.where(is_answer), name)
    if ANSWER_BOX not in asked_for(name):
        return measured_without_boxes(rewards, is_answer)
    boxes = answers.boxes()
    return Measured(rewards, ~np.isnan(boxes[:, 0]), boxes, answers.reach(boxes))


def try_own(answers: Answers, name: str) -> None:
    """Call the user's reward on the first rows, then on each half of them.

    Raises `InputError` if an answer gets another reward in its half.
    """
    is_answer = answers.texts.is_not_null().to_numpy()
    some = _rows(answers.where(is_answer), 0, TRIED_ROWS)
    count = some.rows.height
    if not count:
        return
    half = count // 2
    halves = [part for part in (_rows(some, half, count), _rows(some, 0, half)) if part.rows.height]
    first = _call_own(some, name)
    second = np.roll(np.concatenate([_call_own(part, name) for part in halves]), half)
    differ = np.flatnonzero(first != second)
    if differ.size:
        row = int(differ[0])
        raise InputError(
            f"the reward '{name}' gives {first[row]} and then {second[row]} for the same answer",
            where=_place(some.rows, row),
            fix="let it depend on each answer and its truth alone: neither on chance, nor on the "
            "other answers of the call",
        )


def _source_sha256(function: OwnReward) -> str:
    inner: Any = inspect.unwrap(function)
    while isinstance(inner, functools.partial):
        inner = inner.func
    try:
        file = inspect.getsourcefile(inner if inspect.isroutine(inner) else type(inner))
        return hashlib.sha256(Path(str(file)).read_bytes()).hexdigest()
    except (TypeError, OSError) as error:
        raise ConfigError(
            f"the source of the reward {inner!r} cannot be found, so a changed version of it would "
            f"not be noticed: {error}",
            fix="give a function that is written in a Python file",
        ) from error


@functools.cache
def _parameters(function: OwnReward) -> frozenset[str]:
    """The names of a function's parameters; none if they cannot be known."""
    try:
        return frozenset(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return frozenset()


def _rows(answers: Answers, start: int, end: int) -> Answers:
    return replace(answers, rows=answers.rows[start:end])


def _columns(answers: Answers, name: str) -> dict[str, list[Any]]:
    """The columns that the user's reward gets, each a list of one value per answer."""
    rows, asked = answers.rows, asked_for(name)
    columns = {column: rows[column].to_list() for column in OWN_COLUMNS}
    columns["whole_completions"] = rows["completion"].to_list()
    if ANSWER_BOX in asked:
        columns[ANSWER_BOX] = list(map(_box, answers.boxes()))
    if ANSWER_BOXES in asked:
        columns[ANSWER_BOXES] = [list(map(_box, boxes)) for boxes in answers.box_lists()]
    if EXTRA in asked:
        columns[EXTRA] = [{} if text is None else json.loads(text) for text in rows[EXTRA]]
    return columns


def _box(box: Floats) -> list[float] | None:
    return None if np.isnan(box).any() else list(map(float, box))


def _call_own(answers: Answers, name: str) -> Floats:
    rows, reward = answers.rows, load_own(name)
    columns = _columns(answers, name)
    try:
        returned = reward(answers.texts.to_list(), **columns)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InputError(
            f"the reward '{name}' raised {_describe(error)}",
            where=f"{_place(rows, 0)} and the {rows.height - 1} rows after it",
            fix="correct the function; then all rows are scored again with it",
        ) from error
    return _check_returned(returned, rows, name)


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 (the exception's own __str__ may fail)
        return type(error).__name__


def _check_returned(returned: Any, rows: pl.DataFrame, name: str) -> Floats:
    contract = f"return a list of {rows.height} finite numbers from 0 to 1, one per completion"
    try:
        array = np.asarray(returned)
        if array.dtype.kind not in "biuf" and array.size:
            raise TypeError(f"it holds {array.dtype}")
        values = array.astype(np.float64)
    except Exception as error:  # a tensor that needs a gradient, rows of other lengths, ...
        raise InputError(
            f"the reward '{name}' returned no list of numbers: {_describe(error)}",
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
