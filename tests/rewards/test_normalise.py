"""Normal forms by hand; what must not change does not; any text takes linear time."""

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpo_pipeline.rewards.normalise import NORMAL_FORMS, normalise_texts

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("nfc", DECOMPOSED, COMPOSED),
        ("nfc", "\ufb01 x  y", "\ufb01 x  y"),
        ("whitespace", " a \n\n b\tc\u00a0d ", "a b c d"),
        ("markdown", "# Chapter 1 #\ntext", "Chapter 1\ntext"),
        (
            "markdown",
            "a **bold** and *thin* and __both__ and _one_ word",
            "a bold and thin and both and one word",
        ),
        ("markdown", "***x*** ~~y~~ `z`", "x y z"),
        ("markdown", "- a\n* b\n+ c\n1. d", "a\nb\nc\n1. d"),
        ("markdown", "> quoted\n> > twice", "quoted\ntwice"),
        ("markdown", "[text](http://a.b/c_d) ![alt](x.png)", "text alt"),
        ("markdown", "```python\nx = 1\n```\nafter", "x = 1\nafter"),
        ("markdown", "a\n\n---\n\nb", "a\n\n\nb"),
        ("markdown", "| a | b |\n|---|:-:|\n| 1 | 2 |", "a b\n1 2"),
        ("markdown", "one<br>two<BR/>three", "one\ntwo\nthree"),
        ("markdown", r"5 \* 3 \# \_", "5 * 3 # _"),
        (
            "markdown",
            "2*3 and 2 * 3, snake_case_name, a - b, #5, 1 | 2",
            "2*3 and 2 * 3, snake_case_name, a - b, #5, 1 | 2",
        ),
        ("markdown", "-5 degrees, $x_1$ and <b>", "-5 degrees, $x_1$ and <b>"),
    ],
)
def test_normal_forms_by_hand(form: str, text: str, expected: str) -> None:
    assert normalise_texts([text], [form]) == [expected]


def test_several_forms_are_applied_in_one_order() -> None:
    text = f"# **{DECOMPOSED}**\n\n- x"
    assert normalise_texts([text], ["whitespace", "markdown", "nfc"]) == [f"{COMPOSED} x"]
    assert normalise_texts([text], []) == [text]


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab 1#*_-`>|[]()!~\\\n:<br"), max_size=60))
def test_plain_words_survive_every_form(text: str) -> None:
    for form in NORMAL_FORMS:
        (found,) = normalise_texts([f"word {text}"], [form])
        assert found.lstrip().startswith("word")
    once = normalise_texts([text], ["nfc", "whitespace"])
    assert normalise_texts(once, ["nfc", "whitespace"]) == once
    assert unicodedata.is_normalized("NFC", once[0])


@pytest.mark.parametrize(
    "piece",
    [
        *("[", "*", "_", "`", "|", "- ", "> ", "# ", "![a](", "\\", "__a", "-\n", "| -", "* "),
        *(" ", "\t", "-", "~", ":-"),
    ],
)
def test_a_long_loop_takes_linear_time(piece: str) -> None:
    start = time.perf_counter()
    loop = piece * (100_000 // len(piece))
    normalise_texts([loop, f"a{loop}x", f"{loop}`"], list(NORMAL_FORMS))
    assert time.perf_counter() - start < 5
