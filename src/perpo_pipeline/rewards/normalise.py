"""What counts as the same text: normal forms that are applied to an answer and to its truth alike.

By default there is none, because published figures (Fox, CER) compare texts as they are. A form is
a setting, counts in the fingerprint, and is named beside the figures that it changes.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence

_BREAK = re.compile(r"<br ?/?>", re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]*(?:```++|~~~++)[^`\n]*$\n?", re.MULTILINE)
_RULE = re.compile(r"^[ \t]*(?:\*[* \t]+\*|-[- \t]+-|_[_ \t]+_)[ \t]*$\n?", re.MULTILINE)
_TABLE_RULE = re.compile(r"^(?=[ \t]*[|:-][^\n]*?--)[ \t]*[|:-][|: \t-]*$\n?", re.MULTILINE)
_HEADING = re.compile(r"^[ \t]{0,3}#{1,6}[ \t]+|(?<![ \t])[ \t]+#{1,6}[ \t]*$", re.MULTILINE)
_QUOTE = re.compile(r"^[ \t]{0,3}(?:>[ \t]?)+", re.MULTILINE)
_BULLET = re.compile(r"^[ \t]*[-*+][ \t]+", re.MULTILINE)
_TABLE_ROW = re.compile(r"^[ \t]*\|(.*)\|[ \t]*$", re.MULTILINE)
_LINK = re.compile(r"!?\[([^\[\]\n]{0,500})\]\([^()\n]{0,500}\)")
_STRONG = re.compile(r"(?<!\\)(?:\*\*+|__+|~~|`+)")
_EMPHASIS = re.compile(r"(?<![\\\w])[*_](?=\S)|(?<=[^\s\\])[*_](?!\w)")
_ESCAPE = re.compile(r"\\([\\`*_{}\[\]()#+.!|>~-])")


def without_markdown(text: str) -> str:
    """The text without Markdown's marks, which leave the words: as few rules as pages need.

    Taken off are heading signs, quote signs, bullets (not the numbers of lists), `**`, `__`, `~~`
    and backticks, `*` and `_` at the edge of a word, fences (the code stays), rules, and the bars
    of tables; a link or an image leaves its text, `<br>` a new line, an escaped sign the sign. HTML
    and LaTeX stay as they are.
    """
    text = _BREAK.sub("\n", text)
    for mark in (_FENCE, _RULE, _TABLE_RULE, _QUOTE, _HEADING, _BULLET):
        text = mark.sub("", text)
    text = _TABLE_ROW.sub(lambda row: " ".join(map(str.strip, row[1].split("|"))), text)
    text = _LINK.sub(r"\1", text)
    return _ESCAPE.sub(r"\1", _EMPHASIS.sub("", _STRONG.sub("", text)))


NORMAL_FORMS: dict[str, Callable[[str], str]] = {
    "nfc": lambda text: unicodedata.normalize("NFC", text),
    "markdown": without_markdown,
    "whitespace": lambda text: " ".join(text.split()),
}
"""The forms by name, in the order in which several are applied."""


def named_forms(forms: Sequence[str]) -> str:
    """The sentence that names the forms beside the figures that they change."""
    names = ", ".join(name for name in NORMAL_FORMS if name in forms)
    return f"texts are normalised before they are compared ({names})"


def normalise_texts(texts: Sequence[str], forms: Sequence[str]) -> list[str]:
    """Each text after these forms, some of NORMAL_FORMS, in their order; a new list.

    `nfc` composes characters as Unicode's NFC; `markdown`: `without_markdown`; `whitespace` makes
    every run of white space one space, and takes it off at both ends.
    """
    found = list(texts)
    for name in [name for name in NORMAL_FORMS if name in forms]:
        found = [NORMAL_FORMS[name](text) for text in found]
    return found
