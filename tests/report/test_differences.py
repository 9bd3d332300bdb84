"""Answers beside the truth, word by word."""

import re

from hypothesis import given
from hypothesis import strategies as st

from perpo_pipeline.report.differences import Piece, differences, shortened
from perpo_pipeline.report.page.examples import marked

TEXTS = st.text(alphabet="ab \n.世界", max_size=40)


def _written(pieces: list[Piece]) -> str:
    signs = {"same": "{}", "extra": "+{}+", "missing": "-{}-"}
    return "".join(signs[piece.kind].format(piece.text) for piece in pieces)


def test_changed_missing_and_added_words_are_marked():
    assert _written(differences("the quick fox", "the quick fox")) == "the quick fox"
    assert _written(differences("the slow fox", "the quick fox")) == "the -quick-+slow+ fox"
    assert _written(differences("the fox", "the quick fox")) == "the -quick -fox"
    assert _written(differences("the quick red fox", "the quick fox")) == "the quick +red +fox"
    assert _written(differences("", "fox")) == "-fox-"


def test_any_white_space_equals_any_other():
    assert _written(differences("the\nquick  fox", "the quick fox")) == "the\nquick  fox"


def test_scripts_without_spaces_are_compared_character_by_character():
    assert _written(differences("你好世间", "你好世界")) == "你好世-界-+间+"


@given(TEXTS, TEXTS)
def test_the_pieces_hold_the_answer_and_the_words_of_the_truth(answer, truth):
    pieces = differences(answer, truth)
    assert "".join(p.text for p in pieces if p.kind != "missing") == answer
    found = "".join(p.text for p in pieces if p.kind != "extra")
    assert "".join(found.split()) == "".join(truth.split())
    if answer == truth:
        assert {p.kind for p in pieces} <= {"same"}


def test_marked_text_is_escaped():
    pieces = differences("<b>one</b> two", "<b>one</b> three & four")
    html = str(marked(pieces))
    assert html.startswith("&lt;b&gt;one&lt;/b&gt; ")
    assert re.sub(r"<(/?)(ins|del)>", "", html).count("<") == 0 and "&amp;" in html


def test_long_equal_parts_are_counted_and_a_long_text_is_cut_with_a_count():
    words = [f"w{i}" for i in range(40)]
    pieces = differences(" ".join([*words, "end"]), " ".join([*words, "stop"]))
    text = _written(shortened(pieces, context=5, most=500))
    assert text.startswith("w0 w1 w2 w3 w4 [… 30 words as in the truth …] w35")
    assert text.endswith("w39 -stop-+end+")
    cut = shortened(differences("x" * 900, ""), most=100)
    assert _written(cut) == f"+{'x' * 100}+ [… 800 characters]"
