"""Parsers of replies: a definite reply gives numbers, any other gives None; none raises."""

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpo_pipeline.evaluate.judge.replies import (
    Scores,
    parse_comparison,
    parse_grade,
    parse_rating,
    parse_two_ratings,
)

LINES = """First answer: accuracy 4, adherence 5, truthfulness 3
Second answer: accuracy 1, adherence 2, truthfulness 1
Better: 1"""
COMPARISON = [4, 5, 3, 1, 2, 1, 1]
LOWEST_HIGHEST = {parse_two_ratings: (1, 10), parse_rating: (0, 6), parse_grade: (0, 1)}


@pytest.mark.parametrize(
    "reply",
    [
        LINES,
        LINES.upper(),
        LINES.replace("\n", "\n\n"),
        "Let me see.\n" + LINES + "\nThat is all.",
        LINES + "\n" + LINES,
        LINES.replace("First answer:", "**First answer:**").replace("Better: 1", "**Better:** 1"),
        LINES.replace("accuracy 4,", "accuracy: 4/5,"),
        LINES.replace("accuracy 4", "accuracy = 4"),
        "\n".join([LINES.splitlines()[1], LINES.splitlines()[0], LINES.splitlines()[2]]),
        "<think>Better: 2? First answer: accuracy 1, adherence 1, truthfulness 1</think>" + LINES,
    ],
)
def test_a_comparison_is_read_in_any_layout(reply: str) -> None:
    assert parse_comparison(reply) == COMPARISON


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "Better: 1",
        LINES.splitlines()[0] + "\nBetter: 1",
        LINES.replace("Better: 1", ""),
        LINES.replace("Better: 1", "Better: 3"),
        LINES.replace("Better: 1", "Better: N"),
        LINES.replace("Better: 1", "Better: 1.5"),
        LINES.replace("Better: 1", "Better: 10"),
        LINES + "\nBetter: 2",
        LINES + "\nFirst answer: accuracy 3, adherence 5, truthfulness 3",
        LINES.replace("accuracy 4", "accuracy 6"),
        LINES.replace("accuracy 4", "accuracy 0"),
        LINES.replace("accuracy 4", "accuracy -4"),
        LINES.replace("accuracy 4", "accuracy 4.5"),
        LINES.replace("accuracy 4", "accuracy 4/10"),
        LINES.replace("truthfulness 3", "truthfulness 3.5"),
        LINES.replace("Second", "First"),
        "<think>" + LINES,
    ],
)
def test_a_comparison_that_is_incomplete_or_contradicts_itself_is_unparsed(reply: str) -> None:
    assert parse_comparison(reply) is None


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("7 9\nbecause", [7, 9]),
        ("8 7.5", [8, 7.5]),
        ("7, 9\nwhy", [7, 9]),
        ("7,9", [7, 9]),
        ("\n 10\t1 \nwhy", [10, 1]),
        ("<think>1 1</think>\n\n7 9\nwhy", [7, 9]),
        ("", None),
        ("7", None),
        ("7 9 8", None),
        ("7 11", None),
        ("0 5", None),
        ("-7 9", None),
        ("Assistant 1: 7, Assistant 2: 9", None),
        ("Here are the ratings:\n7 9", None),
        ("79", None),
    ],
)
def test_two_ratings_are_alone_on_the_first_line(reply: str, scores: Scores | None) -> None:
    assert parse_two_ratings(reply) == scores


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("Rating: 3", [3]),
        ("It is fine.\n\nRATING: 0, made up.", [0]),
        ("**Rating:** 4", [4]),
        ("Rating: **4**", [4]),
        ("Rating: 3.", [3]),
        ("Rating: 3/6", [3]),
        ("Rating: 3\n\nFinal rating: 3", [3]),
        ("3", None),
        ("Rating: 7", None),
        ("Rating: 10", None),
        ("Rating: -1", None),
        ("Rating: 3.5", None),
        ("Rating: 3-4", None),
        ("Rating: 3 – 4", None),
        ("Rating: 4\n\n- 2 objects are right", [4]),
        ("Rating: 3/10", None),
        ("Rating: 30%", None),
        ("Rating: 3\nRating: 4", None),
        ("Rating: 3, rating: 3-4", None),
        ("operating: 3", None),
        ("<think>Rating: 1?", None),
    ],
)
def test_a_rating_is_the_only_one_named(reply: str, scores: Scores | None) -> None:
    assert parse_rating(reply) == scores


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("Score: 0.7", [0.7]),
        ("0.7\n", [0.7]),
        ("1", [1]),
        ("Right but for one part.\n**Score:** 0.5.", [0.5]),
        ("Score: 1.0", [1]),
        ("Score: 0.5\n- 1 part is missing", [0.5]),
        ("Score: 1.1", None),
        ("Score: -0.1", None),
        ("Score: 1/10", None),
        ("Score: 1%", None),
        ("Score: 0,5", None),
        ("Score: 0.5 or score: 0.6", None),
        ("good", None),
        ("0.5 0.6", None),
    ],
)
def test_a_grade_is_the_only_score_named(reply: str, scores: Scores | None) -> None:
    assert parse_grade(reply) == scores


# Pieces that come near to each form, so that the parsers get past their first check.
PIECES = st.sampled_from(
    [
        *LINES.replace(",", " ,").split(" "),
        "Rating:",
        "Score:",
        "*",
        "\n",
        " ",
        "0",
        "9",
        "11",
        "3.5",
        "-",
        "/",
        "%",
        "<think>",
        "</think>",
        "<answer>",
        "[/THINK]",
        "\ud800",
        "٣",
        "1" * 400,
    ]
)


@pytest.mark.parametrize("parse", list(LOWEST_HIGHEST))
@given(reply=st.one_of(st.text(), st.lists(PIECES, max_size=12).map(" ".join)))
def test_scores_are_in_range_or_none(parse: Callable[[str], Scores | None], reply: str) -> None:
    low, high = LOWEST_HIGHEST[parse]
    scores = parse(reply)
    assert scores is None or all(low <= score <= high for score in scores)


@given(reply=st.one_of(st.text(), st.lists(PIECES, max_size=40).map(" ".join)))
def test_any_comparison_is_in_range_or_none(reply: str) -> None:
    scores = parse_comparison(reply)
    if scores is not None:
        assert len(scores) == 7 and scores[6] in (0, 1, 2)
        assert all(score in range(1, 6) for score in scores[:6])


@given(ratings=st.lists(st.integers(1, 5), min_size=6, max_size=6), better=st.integers(0, 2))
def test_every_comparison_in_the_requested_form_is_read(ratings: list[int], better: int) -> None:
    names = ("accuracy", "adherence", "truthfulness")
    lines = [
        f"{which} answer: " + ", ".join(f"{n} {r}" for n, r in zip(names, of, strict=True))
        for which, of in (("First", ratings[:3]), ("Second", ratings[3:]))
    ]
    assert parse_comparison("\n".join([*lines, f"Better: {better}"])) == [*ratings, better]


LONG = 100_000


@pytest.mark.parametrize(
    "reply",
    [
        "1" * LONG,
        "rating" + " " * LONG,
        "rating: " * LONG,
        "Score:" + "*" * LONG + "1",
        "1 " * LONG,
        "<think>" * LONG,
        "<think>" + "x" * LONG + "</think>" * 1000,
        ("first answer" + " " * 12) * 5000,
        "better" + "-" * LONG,
    ],
    ids=range(9),
)
def test_a_long_reply_is_read_in_bounded_time(reply: str) -> None:
    start = time.monotonic()
    for parse in (*LOWEST_HIGHEST, parse_comparison):
        parse(reply)
    assert time.monotonic() - start < 5
