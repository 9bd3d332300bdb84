"""From a completion to the text of its answer: thoughts and tags are taken off."""

import re
import time

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpo_pipeline.answers.pipeline import (
    INNER_ANSWER,
    THOUGHTS,
    answer_text,
    answer_texts,
)
from perpo_pipeline.answers.settings import Reading

BOX = "[0.1, 0.2, 0.3, 0.4]"
MARKS = [mark for pair in (*THOUGHTS, INNER_ANSWER, ("<answer>", "</answer>")) for mark in pair]
marked = st.lists(
    st.sampled_from([*MARKS, BOX, "<Answer>", "</THINK>", " ", "\n", "4", "<think", "no"])
    | st.text(max_size=4),
    max_size=8,
).map("".join)
readings = st.builds(
    Reading,
    thinking=st.sampled_from(["auto", "opened", "none"]),
    tag=st.sampled_from(["answer", "box", None]),
    which=st.sampled_from(["first", "last"]),
)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (f"<think>maybe [0, 0, 1, 1]</think>\n\n{BOX}\n", BOX),
        (f"<think>maybe</think><answer>\n{BOX}\n</answer>", BOX),
        (f"maybe [0, 0, 1, 1]\n</think>{BOX}", BOX),
        (f"<think>a<think>b</think>c</think>{BOX}", BOX),
        (f"<think>a</think>b<think>c</think>{BOX}", BOX),
        (f"<answer><think>maybe</think>{BOX}</answer>", BOX),
        (f"<THINK>maybe</Think><Answer>{BOX}</ANSWER>", BOX),
        (f"I write <answer> tags. <answer>{BOX}</answer>", BOX),
        (f"<answer>{BOX}", BOX),
        (f"{BOX}</answer> and more", BOX),
        (f"<think>maybe</think><answer>{BOX}", BOX),
        ("<think>it is all said</think>", ""),
        (f"<|channel>thought\nmaybe [0, 0, 1, 1]<channel|>{BOX}", BOX),
        (f"<|channel>thought\n<channel|>{BOX}", BOX),
        ("<answer></answer>", ""),
        (f"<think>{BOX}", None),
        (f"<think>{BOX}</thin", None),
        (f"<think>a</think>{BOX}<think>cut off", None),
        ("◁think▷so◁/think▷4", "4"),
        ("<thinking>so</thinking>4", "4"),
        ("[THINK]so[/THINK]4", "4"),
        ("<seed:think>so</seed:think>4", "4"),
        ("<think>so</think><answer>It is <|begin_of_box|>4<|end_of_box|>.</answer>", "4"),
        ("It is <|begin_of_box|>4<|end_of_box|>.", "4"),
        (
            "One <|begin_of_box|>[[1,2,3,4]]<|end_of_box|> and <|begin_of_box|>[[5,6,7,8]]"
            "<|end_of_box|> at last",
            "[[1,2,3,4]]  and  [[5,6,7,8]]",
        ),
        ("<|begin_of_box|>3<|END_of_box|><|begin_of_box|>4<|end_of_box|>", "3  4"),
        ("It is <|begin_of_box|>4", "4"),
        ("4<|end_of_box|> or so", "4"),
        ("3<|end_of_box|> and <|begin_of_box|>4<|end_of_box|>.", "3  and  4"),
        ("so <|begin_of_box|>3<|end_of_box|> and <|begin_of_box|>4", "3  and  4"),
        ("  a text without marks stays as it is, 1 < 2 > 0 \n", None),
    ],
)
def test_what_stands_after_the_thought_and_inside_the_tag_is_the_answer(completion, expected):
    if "without marks" in completion:
        expected = completion
    assert answer_text(completion, Reading()) == expected


@pytest.mark.parametrize(
    ("reading", "completion", "expected"),
    [
        (Reading(thinking="opened"), f"maybe</think>{BOX}", BOX),
        (Reading(thinking="opened"), f"<think>maybe</think>{BOX}", BOX),
        (Reading(thinking="opened"), BOX, None),
        (Reading(thinking="opened"), f"<answer>{BOX}</answer>", None),
        (Reading(thinking="none"), "<think>a</think> b", "<think>a</think> b"),
        (Reading(thinking="none"), "<think>a</think><answer>b</answer>", "b"),
        (Reading(tag=None), "<answer>b</answer> ", "<answer>b</answer> "),
        (Reading(tag=None), "<think>a</think><answer>b</answer>", "<answer>b</answer>"),
        (Reading(tag="box"), "<answer><box>b</box></answer>", "b"),
        (Reading(), "<answer>a</answer><answer>b</answer>", "a"),
        (Reading(which="last"), "<answer>a</answer><answer>b</answer> c", "b"),
        (Reading(which="last"), "<answer>a</answer><answer>b", "b"),
        (Reading(which="last"), "b</answer> c", "b"),
    ],
)
def test_the_settings_decide_what_is_taken_off(reading, completion, expected):
    assert answer_text(completion, reading) == expected


def test_a_null_stays_a_null_and_rows_keep_their_order():
    texts = pl.Series(["a", None, "<think>x</think> b ", "<think>c", " d "])
    assert answer_texts(texts, Reading()).to_list() == ["a", None, "b", None, " d "]
    assert answer_texts(texts, Reading(thinking="opened")).to_list() == [
        None,
        None,
        "b",
        None,
        None,
    ]
    assert texts.to_list()[2] == "<think>x</think> b "
    assert answer_texts([], Reading()).to_list() == []


@settings(max_examples=200, deadline=None)
@given(st.lists(marked, max_size=6), readings)
def test_many_texts_give_what_each_gives_alone(texts, reading):
    found = answer_texts(texts, reading).to_list()
    assert found == [answer_text(text, reading) for text in texts]
    inner = re.compile("|".join(map(re.escape, INNER_ANSWER)), re.IGNORECASE)
    for text, answer in zip(texts, found, strict=True):
        whole = text.encode("utf-8", "replace").decode()
        if reading.tag == "answer":
            whole = inner.sub(" ", whole)
        assert answer is None or answer in whole


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("which", ["first", "last"])
def test_a_million_characters_of_marks_take_a_second_at_most(mark: str, which):
    start = time.monotonic()
    answer_texts([mark * (10**6 // len(mark)), "x" * 10**6 + mark], Reading(which=which))
    assert time.monotonic() - start < 5
