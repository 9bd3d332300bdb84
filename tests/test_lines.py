"""Lines are cut at a width, with how much is missing."""

import io

from hypothesis import given
from hypothesis import strategies as st

from perpo_pipeline.lines import cut, width_of


def test_what_fits_stays_and_line_breaks_are_spelled() -> None:
    assert cut("abc", 3) == "abc"
    assert cut("a\nb\r", 80) == "a\\nb\\r"


def test_what_is_cut_off_is_counted() -> None:
    line = "x" * 2000
    found = cut(line, 80)
    shown, mark = found.split("…")
    assert len(found) <= 80 and mark == f" (+{2000 - len(shown):,})" and len(shown) > 60


@given(st.text(max_size=300), st.integers(12, 120))
def test_no_line_is_wider(line: str, width: int) -> None:
    assert len(cut(line, width)) <= width


def test_a_pipe_has_no_width() -> None:
    assert width_of(io.StringIO()) is None
