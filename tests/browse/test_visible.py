"""Characters that hide or turn lines around are shown, and everything else is left alone."""

from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpo_pipeline.browse.visible import as_typed, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b\x1b[31m", "a‹U+0000›b‹U+001B›[31m"),
        ("\x7f\r", "‹U+007F›‹U+000D›"),
        ("abc\u202edcba\u202c", "abc‹U+202E›dcba‹U+202C›"),
        ("\u2066x\u2069\u200e\u200f\u061c", "‹U+2066›x‹U+2069›‹U+200E›‹U+200F›‹U+061C›"),
        ("a\u200bb\ufeff\u00ad", "a‹U+200B›b‹U+FEFF›‹U+00AD›"),
        ("\U000e0041", "‹U+E0041›"),
        ("\udcff\ufff9", "‹U+DCFF›‹U+FFF9›"),
        ("\x85\u2028", "‹U+0085›‹U+2028›"),
        ("a\tb\nc é 漢 👩‍🚀 नि‍", "a\tb\nc é 漢 👩‍🚀 नि‍"),  # joiners belong to letters and emoji
    ],
)
def test_what_does_not_show_gets_a_sign(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text())
def test_a_field_keeps_what_was_typed(text: str) -> None:
    field = visible(as_typed(text))
    assert "<" not in field and '"' not in field
    if not set(text) & {"\x00", "\r"} and all(not 0x80 <= ord(c) < 0xA0 for c in text):
        assert unescape(field) == text or any(ord(c) < 0x20 or ord(c) == 0x7F for c in text)
