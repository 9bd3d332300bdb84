"""Answers beside the truth, character by character, with lines in a wrong place."""

import random
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from perpo_pipeline.report.differences import Piece, differences, in_words, shortened
from perpo_pipeline.report.page.texts import marked

TEXTS = st.text(alphabet="ab \n.世界", max_size=40)


def _written(pieces: list[Piece]) -> str:
    signs = {"same": "{}", "extra": "+{}+", "missing": "-{}-", "again": "%{}%"}
    return "".join(
        (f"<{piece.line}>" if piece.line else "") + signs[piece.kind].format(piece.text)
        for piece in pieces
    )


def test_changed_missing_and_added_words_are_marked():
    assert _written(differences("the quick fox", "the quick fox")) == "the quick fox"
    assert _written(differences("the slow fox", "the quick fox")) == "the -quick-+slow+ fox"
    assert _written(differences("the fox", "the quick fox")) == "the -quick -fox"
    assert _written(differences("the quick red fox", "the quick fox")) == "the quick +red +fox"
    assert _written(differences("", "fox")) == "-fox-"


def test_characters_are_marked_inside_a_word():
    assert _written(differences("K782 QX.", "K7B2 QX.")) == "K7-B-+8+2 QX."
    assert _written(differences("ONE TW", "ONE TWO")) == "ONE TW-O-"
    assert _written(differences("ONE,TWO", "ONE TWO")) == "ONE- -+,+TWO"
    assert _written(differences("PTXQ9Z8", "ABXB7C6")) == "-ABXB7C6-+PTXQ9Z8+"  # X is chance


def test_any_white_space_equals_any_other_if_that_is_asked_for():
    answer, truth = "the\nquick  fox", "the quick fox"
    assert _written(differences(answer, truth, any_space=True)) == "the\nquick  fox"
    assert _written(differences(answer, truth)) == "the- -+\n+quick + +fox"


PAGE = "K7B2 QX.\nM4-ZZP 01L\nHELLO 99A\nP2Q RRT:"


@pytest.mark.parametrize(
    ("order", "written", "counted"),
    [
        ((1, 3, 2, 4), "{1}\n<3>{3}\n{2}\n{4}", "1 line in a wrong place"),
        ((1, 2, 2, 3, 4), "{1}\n{2}\n<2>%{2}%\n{3}\n{4}", "1 line repeated"),
        ((1, 3, 4), "{1}\n-{2}\n-{3}\n{4}", "11 characters missing"),
        ((4, 1, 2, 3), "<4>{4}\n{1}\n{2}\n{3}", "1 line in a wrong place"),
    ],
)
def test_lines_are_marked_that_are_missing_repeated_or_in_a_wrong_place(order, written, counted):
    lines = PAGE.split("\n")
    answer = "\n".join(lines[at - 1] for at in order)
    pieces = differences(answer, PAGE)
    assert _written(pieces) == written.format("", *lines)
    assert in_words(pieces) == counted


def test_the_lines_of_the_right_column_are_in_a_wrong_place_if_columns_are_read_across():
    left, right = ["AAB 12C", "DEF 45G"], ["LMN 90O", "PQR 12S"]
    answer = "\n".join(" ".join(pair) for pair in zip(left, right, strict=True))
    pieces = differences(answer, "\n".join(left + right))
    assert _written(pieces) == "AAB 12C <3>LMN 90O\nDEF 45G-\n-+ +PQR 12S"


def test_a_line_in_a_wrong_place_has_its_errors_marked_in_it():
    pieces = differences("P2Q RR7:\nK7B2 QX.\nM4-ZZP 01L\nHELLO 99A", PAGE)
    assert _written(pieces[:4]) == "<4>P2Q RR<4>-T-<4>+7+<4>:"
    assert in_words(pieces) == "1 character wrong, 1 line in a wrong place"


def test_words_read_wrong_are_no_repeated_line():
    assert in_words(differences("ONE ABCDEFX", "ONE ABCDEFG")) == "1 character wrong"
    assert in_words(differences("ABCDEFX\nABCDEFG", "ABCDEFY\nABCDEFG")) == "1 character wrong"


def test_equal_texts_and_no_answer_are_said_in_words():
    assert in_words(differences("a b", "a b")) == "no differences"
    assert in_words(differences("", "1,234 a")) == "7 characters missing"
    assert in_words(differences("abc", "")) == "3 characters too many"


def test_scripts_without_spaces_are_compared_character_by_character():
    assert _written(differences("你好世间", "你好世界")) == "你好世-界-+间+"


@given(TEXTS, TEXTS)
def test_the_pieces_hold_the_answer_and_the_words_of_the_truth(answer, truth):
    pieces = differences(answer, truth)
    assert "".join(p.text for p in pieces if p.kind != "missing") == answer
    found = "".join(p.text for p in pieces if p.kind in ("same", "missing"))
    assert sorted("".join(found.split())) == sorted("".join(truth.split()))
    if not any(p.line for p in pieces):
        assert found == truth
        edits = sum(len(p.text) for p in pieces if p.kind in ("extra", "missing"))
        assert edits >= Levenshtein.distance(answer, truth)
    if answer == truth:
        assert {p.kind for p in pieces} <= {"same"}


def test_marked_text_is_escaped():
    pieces = differences("<b>one</b> two", "<b>one</b> three & four")
    html = str(marked(pieces))
    assert html.startswith("&lt;b&gt;one&lt;/b&gt; ")
    ours = r'<(/?)(ins|del)>|<span class="swap">|</span>'
    assert re.sub(ours, "", html).count("<") == 0 and "&amp;" in html


def test_long_equal_parts_are_counted_and_a_long_text_is_cut_with_a_count():
    words = [f"w{i}" for i in range(40)]
    pieces = differences(" ".join([*words, "end"]), " ".join([*words, "stop"]))
    text = _written(shortened(pieces, context=5, most=500))
    assert text.startswith("w0 w1 w2 w3 w4 [… 30 words as in the truth …] w35")
    assert text.endswith("w39 -stop-+end+")
    cut = shortened(differences("x" * 900, ""), most=100)
    assert _written(cut) == f"+{'x' * 100}+ [… 800 characters]"


def test_a_line_in_a_wrong_place_leaves_no_line_break_over():
    """The word before the line break is read wrong, so the break is no longer between two words."""
    pieces = differences("AAA ZZ\nLINE3.\nBBBX CC", "AAA ZZ\nBBBY CC\nLINE3.")
    assert _written(pieces) == "AAA ZZ\n<3>LINE3.\nBBB-Y-+X+ CC"


def test_a_table_of_20_000_characters_takes_seconds_of_the_processor_at_most():
    """4,000 short lines like thousands of others: every one is searched for among all."""
    drawn = random.Random(1)
    truth, answer = ("\n".join(str(drawn.randrange(1000, 9999)) for _ in range(4000)) for _ in "ab")
    start = time.process_time()
    pieces = differences(answer, truth)
    assert time.process_time() - start < 5
    assert "".join(one.text for one in pieces if one.kind != "missing") == answer
