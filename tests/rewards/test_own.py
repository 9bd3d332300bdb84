"""A user's own reward, by import path: its contract is checked."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rewards.answer_rows import answers

from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.rewards.choice import measure
from perpo_pipeline.rewards.own import load_own, own_rewards, try_own

OWN = """
import functools
import itertools
import math

calls = itertools.count()


def share_of_a(completions, **columns):
    return [text.count("a") / max(len(text), 1) for text in completions]


def looks_at_the_truth(completions, *, gt_text, width, prompt, **columns):
    return [float(t == g and w == 100) for t, g, w in zip(completions, gt_text, width)]


def too_few(completions, **columns):
    return [0.5]


def not_a_number(completions, **columns):
    return [math.nan] * len(completions)


def none(completions, **columns):
    return None


def above_one(completions, **columns):
    return [1.0] * (len(completions) - 1) + [1.5]


def of_the_batch(completions, **columns):
    longest = max(map(len, completions))
    return [len(text) / longest for text in completions]


def complex_numbers(completions, **columns):
    return [1j] * len(completions)


def leaves(completions, **columns):
    raise SystemExit(0)


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError


def unspeakable(completions, **columns):
    raise Unspeakable


class Callable:
    def __call__(self, completions, **columns):
        return [0.5] * len(completions)


an_object = Callable()
a_partial = functools.partial(share_of_a)


def raises(completions, **columns):
    raise RuntimeError("no such answer")


def random(completions, **columns):
    return [next(calls) % 7 / 7 for _ in completions]


constant = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    file = tmp_path / "my_rewards.py"
    file.write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    load_own.cache_clear()
    yield file
    load_own.cache_clear()
    sys.modules.pop("my_rewards", None)


def test_a_users_own_reward_gets_completions_and_columns(mine: Path) -> None:
    given = answers({"completion": "aab", "gt_text": "aab"}, {"completion": "b", "gt_text": "a"})
    found = measure(given, {"my_rewards:share_of_a": 1.0})
    assert found.rewards.tolist() == pytest.approx([2 / 3, 0.0])
    found = measure(given, {"my_rewards:looks_at_the_truth": 1.0})
    assert found.rewards.tolist() == [1.0, 0.0]
    mixed = measure(given, {"my_rewards:share_of_a": 1.0, "exact_match": 1.0})
    assert mixed.rewards.tolist() == pytest.approx([5 / 6, 0.0])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("too_few", r"returned the shape \(1,\) for 2 completions"),
        ("not_a_number", r"returned nan \(2 values"),
        ("none", r"returned no list of numbers: TypeError: it holds object"),
        ("above_one", r"returned 1.5 \(1 values"),
        ("raises", r"raised RuntimeError: no such answer"),
        ("complex_numbers", r"returned no list of numbers: TypeError: it holds complex"),
        ("leaves", r"raised SystemExit: 0"),
        ("unspeakable", r"raised Unspeakable"),
    ],
)
def test_a_broken_contract_is_reported_with_its_place(
    mine: Path, function: str, message: str
) -> None:
    given = answers({"completion": "a"}, {"completion": "b"})
    with pytest.raises(InputError, match=message):
        measure(given, {f"my_rewards:{function}": 1.0})


def test_a_reward_that_is_not_deterministic_is_found_before_anything_is_scored(mine: Path) -> None:
    given = answers({"completion": "a"}, {"completion": "b"})
    for changing in ("random", "of_the_batch"):
        given = answers({"completion": "a"}, {"completion": "bb"}, {"completion": "c"})
        with pytest.raises(InputError, match="for the same answer"):
            try_own(given, f"my_rewards:{changing}")
    try_own(given, "my_rewards:share_of_a")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_rewards:absent", "has no attribute 'absent'"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("my_rewards:constant", "has type int and is not callable"),
    ],
)
def test_what_cannot_be_imported_is_named(mine: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_own(name)


def test_a_changed_function_changes_the_fingerprint(mine: Path) -> None:
    name = "my_rewards:share_of_a"
    before = own_rewards({name: 1.0, "iou": 1.0})
    mine.write_text(OWN + "# changed\n")
    after = own_rewards({name: 1.0})
    assert list(before) == list(after) == [name] and before != after


def test_objects_and_partials_are_known_by_the_file_of_their_code(mine: Path) -> None:
    names = [f"my_rewards:{name}" for name in ("an_object", "a_partial", "share_of_a")]
    hashes = own_rewards(dict.fromkeys(names, 1.0))
    assert len(set(hashes.values())) == 1
    assert measure(answers({"completion": "ab"}), {names[0]: 1.0}).rewards.tolist() == [0.5]


def test_code_without_a_source_is_refused() -> None:
    with pytest.raises(ConfigError, match="a changed version of it would not be noticed"):
        own_rewards({"math:sqrt": 1.0})
