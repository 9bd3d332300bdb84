"""Colours that can be read on a light and on a dark page, and the scale of rewards.

Colours of methods come from METHODS or from a user, so their variants are computed: mixed with
black or white until the contrast to the page is that of WCAG 2.2 for text (success criterion
1.4.3).
"""

import re
from collections.abc import Collection
from importlib import resources

INK, MUTED, RULE, GRID = "#1b1f24", "#5b6470", "#d9dde2", "#eef0f3"
PAPER, DARK_PAPER = "#ffffff", "#14181d"
TINTED, DARK_TINTED = "#f0f5fe", "#1c2735"
"""The row of the headline's method; text must be readable on it, too."""
FOR_TEXT, FOR_MARKS, FOR_DARK_MARKS = 4.5, 1.2, 3.0
"""The least contrast of a text, and of lines and areas; greys on white may be pale."""
NAMED = {INK: "ink", MUTED: "muted", RULE: "rule", GRID: "grid", PAPER: "paper"}
"""Colours of plots that the style sheet names."""

WORST, MIDDLE, BEST = "#b5480a", "#8a8f98", "#1d5fd1"
"""The scale of rewards, apart for people with any kind of colour blindness: orange to blue."""

Rgb = tuple[float, float, float]


def themed(colour: str, *, is_text: bool = False) -> str:
    """The CSS variable of a colour, whose value depends on the theme."""
    kind = "t" if is_text else "c"
    return f"var(--{NAMED.get(colour.lower(), f'{kind}-' + colour.lstrip('#').lower())})"


def variables(page: str, *, dark: bool) -> str:
    """The CSS declarations for one theme of all `themed` colours that occur in a page."""
    papers = (DARK_PAPER, DARK_TINTED) if dark else (PAPER, TINTED)
    found = dict.fromkeys(re.findall(r"var\(--([ct])-([0-9a-f]{6})\)", page))
    marks = FOR_DARK_MARKS if dark else FOR_MARKS
    return " ".join(
        f"--{kind}-{digits}: "
        f"{readable(f'#{digits}', papers, FOR_TEXT if kind == 't' else marks, dark=dark)};"
        for kind, digits in found
    )


def theme(*, dark: bool) -> str:
    """The CSS declarations of the colours in NAMED for one theme, as page.css has them."""
    css = resources.files("perpo_pipeline.report.page").joinpath("page.css").read_text()
    block = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)[dark]
    found = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", block))
    return " ".join(f"--{name}: {found[name]};" for name in NAMED.values())


def readable(colour: str, papers: Collection[str], least: float, *, dark: bool) -> str:
    """The colour, or the nearest mixture with white (`dark`) or black of at least this contrast."""
    end: Rgb = (255.0, 255.0, 255.0) if dark else (0.0, 0.0, 0.0)
    for step in range(51):
        mixed = _mixed(_rgb(colour), end, step / 50)
        if all(contrast(mixed, paper) >= least for paper in papers):
            return mixed
    return _hex(end)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    first, second = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (first + 0.05) / (second + 0.05)


def reward_colour(at: float) -> str:
    """The colour of a reward at this place between the lowest (0) and the highest (1) of a list."""
    if at < 0.5:
        return _mixed(_rgb(WORST), _rgb(MIDDLE), 2 * at)
    return _mixed(_rgb(MIDDLE), _rgb(BEST), 2 * at - 1)


def _luminance(colour: str) -> float:
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (value / 255 for value in _rgb(colour))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _rgb(colour: str) -> Rgb:
    digits = colour.lstrip("#")
    red, green, blue = (float(int(digits[at : at + 2], 16)) for at in (0, 2, 4))
    return red, green, blue


def _mixed(one: Rgb, other: Rgb, share: float) -> str:
    red, green, blue = (a + (b - a) * share for a, b in zip(one, other, strict=True))
    return _hex((red, green, blue))


def _hex(rgb: Rgb) -> str:
    return "#" + "".join(f"{round(value):02x}" for value in rgb)
