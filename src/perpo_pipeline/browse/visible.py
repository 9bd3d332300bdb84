"""Characters that do not show, or that turn a line around, made visible in a finished page.

Answers of a model are anybody's text: a right-to-left mark in one would reorder the page's own
words. The whole page goes through `visible`, so no place can be forgotten.
"""

from markupsafe import Markup, escape

_KEPT = {"\n", "\t"}
_CONTROLS = {chr(code): chr(0x2400 + code) for code in range(0x20)} | {"\x7f": "\u2421"}
_TURNING = [
    "\u061c",
    "\u200e",
    "\u200f",
    *map(chr, range(0x202A, 0x202F)),
    *map(chr, range(0x2066, 0x206A)),
]
_UNSEEN = [
    "\u00ad",
    "\u200b",
    "\ufeff",
    *map(chr, range(0x2060, 0x2065)),
    *map(chr, range(0x206A, 0x2070)),
]
_OTHERS = [*map(chr, range(0x80, 0xA0)), "\u2028", "\u2029", *map(chr, range(0xE0000, 0xE0080))]
_SIGNS = {ord(one): sign for one, sign in _CONTROLS.items() if one not in _KEPT} | {
    ord(one): f"\u2039U+{ord(one):04X}\u203a" for one in (*_TURNING, *_UNSEEN, *_OTHERS)
}


def visible(page: str) -> str:
    """A page with a sign for each of these characters: `‹U+202E›`, `␀`."""
    return page.translate(_SIGNS)


def as_typed(text: str) -> Markup:
    """A text for a form's field: `visible` leaves it as it is, so that it can be sent again."""
    return Markup("").join(
        Markup("&#{};").format(ord(one)) if ord(one) in _SIGNS else escape(one) for one in text
    )
