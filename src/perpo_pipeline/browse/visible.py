"""Characters that do not show, or that turn a line around, made visible in a finished page.

Answers of a model are anybody's text: a right-to-left mark in one would reorder the page's own
words. The whole page goes through `visible`, so no place can be forgotten.
"""

from markupsafe import Markup, escape

_RANGES = (
    (0x00, 0x08),  # controls, but for tab and line feed
    (0x0B, 0x1F),
    (0x7F, 0x9F),
    (0x00AD, 0x00AD),  # soft hyphen
    (0x061C, 0x061C),  # marks and embeddings of direction
    (0x200B, 0x200B),  # zero-width space; joiners belong to letters and emoji
    (0x200E, 0x200F),
    (0x2028, 0x202E),
    (0x2060, 0x206F),
    (0xD800, 0xDFFF),  # surrogates, which stand for bytes of a path that are no UTF-8
    (0xFEFF, 0xFEFF),
    (0xFFF9, 0xFFFB),
    (0xE0000, 0xE007F),  # tags
)
_SIGNS = {
    code: f"\u2039U+{code:04X}\u203a" for first, last in _RANGES for code in range(first, last + 1)
}


def visible(page: str) -> str:
    """A page with each of these characters written out, as `‹U+202E›`."""
    return page.translate(_SIGNS)


def as_typed(text: str) -> Markup:
    """A text for a form's field: `visible` leaves it as it is, so that it can be sent again."""
    return Markup("").join(
        Markup("&#{};").format(ord(one)) if ord(one) in _SIGNS else escape(one) for one in text
    )
