"""Deterministic pictures of pages with their text: the other data of the embedded default.

A page holds random words of capital letters, digits and some punctuation, so nothing but the
picture helps to read it; on a third of the pages the lines stand in two columns, which are read
one after the other. Size, spacing, place and colours vary, and there is light noise. Everything is
a pure function of (seed, index, preset), in whole numbers, so pixels are the same everywhere.
"""

from dataclasses import dataclass, field
from string import ascii_uppercase, digits

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perpo_pipeline.answers.formats import PAGE_PROMPT as PAGE_PROMPT
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.testbed.glyphs import SUPERSAMPLING, glyph_mask

# Makes these pages differ from other uses of the same seeds.
PAGE_DOMAIN = 250204372

LETTERS = ascii_uppercase + digits
PUNCTUATION = ".,-:?+"
LONGEST_WORD = 7


@dataclass(frozen=True)
class PagePreset:
    """What pages of one difficulty look like; lengths are in pixels unless they say otherwise."""

    image_size: int = 96
    characters: tuple[int, int] = (40, 76)  # of the whole text, spaces and line breaks included
    lines: tuple[int, int] = (3, 7)  # of a column
    sizes: tuple[float, ...] = (9.0, 9.5, 10.0, 10.5, 11.0)  # pixels per em
    two_columns_share: float = 1 / 3
    punctuation_share: float = 0.1  # of all characters
    column_gap: int = 11
    noise: int = 5


PAGE_PRESETS: dict[str, PagePreset] = {"small": PagePreset()}


@dataclass(frozen=True)
class PageLine:
    """One line of a page; `left_px` and `top_px` are the corner of its first character's cell."""

    text: str
    column: int
    left_px: int
    top_px: int
    advance_px: int
    height_px: int

    @property
    def box_xyxy_px(self) -> tuple[int, int, int, int]:
        """Box around the cells of all characters."""
        right = self.left_px + self.advance_px * len(self.text)
        return (self.left_px, self.top_px, right, self.top_px + self.height_px)

    def centers_px(self) -> list[tuple[float, float]]:
        """Centre (x, y) of each character's cell, spaces included."""
        y = self.top_px + self.height_px / 2
        return [(self.left_px + self.advance_px * (k + 0.5), y) for k in range(len(self.text))]


@dataclass(frozen=True)
class PageExample:
    """One page: `image` is RGB, `lines` and `text` are in reading order, left column first."""

    image: Image.Image = field(repr=False)
    text: str
    lines: tuple[PageLine, ...]
    columns: int


@dataclass(frozen=True)
class _Layout:
    """Where lines and columns of a page stand, in pixels."""

    size: float
    advance: int
    pitch: int
    columns: int
    widths: tuple[int, ...]  # of each column, in characters
    gap: int


def page_preset(preset: str) -> PagePreset:
    """The settings of a preset; raises ConfigError for an unknown name."""
    if preset not in PAGE_PRESETS:
        known = ", ".join(PAGE_PRESETS)
        raise ConfigError(f"unknown testbed preset {preset!r}", fix=f"choose one of: {known}")
    return PAGE_PRESETS[preset]


def page_example(seed: int, index: int, preset: str = "small") -> PageExample:
    """Page number `index` for a seed: a pure function of its three arguments."""
    settings = page_preset(preset)
    rng = np.random.default_rng([PAGE_DOMAIN, settings.image_size, seed, index])
    return draw_page(settings, rng)


def draw_page(preset: PagePreset, rng: np.random.Generator) -> PageExample:
    """One page, everything about it drawn from `rng`."""
    low, high = preset.characters
    while True:
        layout = _draw_layout(preset, rng)
        columns = _draw_columns(layout, preset, rng)
        text = "\n".join(line for column in columns for line in column)
        if low <= len(text) <= high:
            break
    lines = tuple(_place_lines(columns, layout, preset, rng))
    return PageExample(_render(lines, layout.size, preset, rng), text, lines, layout.columns)


def _draw_layout(preset: PagePreset, rng: np.random.Generator) -> _Layout:
    size = float(preset.sizes[int(rng.integers(len(preset.sizes)))])
    tightest = int(np.ceil(0.602 * size - 0.05))  # this font's characters are 0.602 em wide
    advance = tightest + int(rng.integers(2)) if tightest < 7 else tightest
    pitch = round(size + 0.5) + int(rng.integers(1, 4))
    columns = 2 if rng.random() < preset.two_columns_share else 1
    if columns == 1:
        widest = (preset.image_size - 2) // advance
        return _Layout(size, advance, pitch, 1, (int(rng.integers(widest - 4, widest + 1)),), 0)
    gap = preset.column_gap + int(rng.integers(3))
    widest = (preset.image_size - 2 - gap) // (2 * advance)
    widths = tuple(int(width) for width in rng.integers(widest - 1, widest + 1, size=2))
    return _Layout(size, advance, pitch, 2, widths, gap)


def _draw_columns(layout: _Layout, preset: PagePreset, rng: np.random.Generator) -> list[list[str]]:
    """The lines of each column; the right one may be a line shorter."""
    low, high = preset.lines
    fitting = min(high, (preset.image_size - 2) // layout.pitch)
    count = int(rng.integers(low, fitting + 1))
    counts = [count, max(low, count - int(rng.integers(2)))][: layout.columns]
    return [
        [_draw_line(int(rng.integers((width + 1) // 2, width + 1)), preset, rng) for _ in range(n)]
        for width, n in zip(layout.widths, counts, strict=True)
    ]


def _draw_line(length: int, preset: PagePreset, rng: np.random.Generator) -> str:
    """Words of 1 to LONGEST_WORD characters with single spaces, `length` characters in all."""
    words: list[str] = []
    left = length
    while left > 0:
        word = int(rng.integers(1, LONGEST_WORD + 1))
        if word >= left - 1:  # no room for a space and another word
            word = left if left <= LONGEST_WORD else left - 2
        words.append(_draw_word(word, preset, rng))
        left -= word + 1
    return " ".join(words)


def _draw_word(length: int, preset: PagePreset, rng: np.random.Generator) -> str:
    marks = rng.random(length) < preset.punctuation_share
    return "".join(
        PUNCTUATION[int(rng.integers(len(PUNCTUATION)))]
        if mark
        else LETTERS[int(rng.integers(len(LETTERS)))]
        for mark in marks
    )


def _place_lines(
    columns: list[list[str]], layout: _Layout, preset: PagePreset, rng: np.random.Generator
) -> list[PageLine]:
    """Columns side by side at a random place of the page."""
    cell = glyph_mask(LETTERS[0], layout.size, layout.advance).shape[0]
    height = (max(len(lines) for lines in columns) - 1) * layout.pitch + cell
    width = sum(layout.widths) * layout.advance + layout.gap
    left = int(rng.integers(1, preset.image_size - width))
    top = int(rng.integers(1, preset.image_size - height + 1))
    placed: list[PageLine] = []
    for column, lines in enumerate(columns):
        for row, text in enumerate(lines):
            y = top + row * layout.pitch
            placed.append(PageLine(text, column, left, y, layout.advance, cell))
        left += layout.widths[column] * layout.advance + layout.gap
    return placed


def _render(
    lines: tuple[PageLine, ...], size: float, preset: PagePreset, rng: np.random.Generator
) -> Image.Image:
    """Dark text on a pale ground with light noise."""
    side, full = preset.image_size, SUPERSAMPLING**2
    paper, ink = rng.integers(205, 256, size=3), rng.integers(0, 91, size=3)
    cover = np.zeros((side, side), dtype=np.int64)
    for line in lines:
        for k, character in enumerate(line.text):
            if character != " ":
                mask = glyph_mask(character, size, line.advance_px)
                _stamp(cover, mask, line.left_px + k * line.advance_px, line.top_px)
    canvas = (paper * (full - cover[..., None]) + ink * cover[..., None] + full // 2) // full
    canvas += rng.integers(-preset.noise, preset.noise + 1, size=(side, side, 1))
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8), "RGB")


def _stamp(cover: NDArray[np.int64], mask: NDArray[np.int64], left: int, top: int) -> None:
    cover[top : top + mask.shape[0], left : left + mask.shape[1]] += mask
