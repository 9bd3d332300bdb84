"""The rendered pages: the same everywhere, legible, read column by column."""

import hashlib
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.testbed.glyphs import SUPERSAMPLING, baseline, glyph_mask
from perpo_pipeline.testbed.pages import LETTERS, PAGE_PRESETS, PUNCTUATION, page_example

PAGES = [page_example(5, index) for index in range(120)]


def drawn_by_pillow(character: str, size: int, advance_px: int, height: int) -> np.ndarray:
    """The character by FreeType, eight times as large and averaged, darkness in [0, 1]."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"
    font = ImageFont.truetype(str(path), 8 * size, layout_engine=ImageFont.Layout.BASIC)
    canvas = Image.new("L", (8 * advance_px, 8 * height))
    left = (8 * advance_px - font.getlength(character)) / 2
    place = (left, 8 * baseline(size))
    ImageDraw.Draw(canvas).text(place, character, font=font, fill=255, anchor="ls")
    blocks = np.asarray(canvas, dtype=float).reshape(height, 8, advance_px, 8)
    return blocks.mean(axis=(1, 3)) / 255


def test_a_page_is_a_function_of_seed_and_index_on_every_machine() -> None:
    page = page_example(7, 3)
    assert page == page_example(7, 3)
    assert page.image.tobytes() == page_example(7, 3).image.tobytes()
    assert page.text != page_example(7, 4).text
    assert page.text != page_example(8, 3).text
    digest = hashlib.sha256(page.image.tobytes() + page.text.encode()).hexdigest()
    assert digest[:16] == "cc0643465ed96a4c"


def test_an_unknown_preset_is_an_error() -> None:
    with pytest.raises(ConfigError, match="unknown testbed preset 'large'"):
        page_example(0, 0, "large")


def test_texts_hold_the_promised_characters_words_and_lengths() -> None:
    for page in PAGES:
        assert 40 <= len(page.text) <= 76
        assert set(page.text) <= set(LETTERS + PUNCTUATION + " \n")
        assert page.text == "\n".join(line.text for line in page.lines)
        words = [word for line in page.text.split("\n") for word in line.split(" ")]
        assert all(1 <= len(word) <= 7 for word in words)
    seen = set("".join(page.text for page in PAGES))
    assert seen == set(LETTERS + PUNCTUATION + " \n")


def test_two_columns_are_read_one_after_the_other() -> None:
    pages = [page for page in PAGES if page.columns == 2]
    assert 0.2 < len(pages) / len(PAGES) < 0.45
    for page in pages:
        left = [line for line in page.lines if line.column == 0]
        right = [line for line in page.lines if line.column == 1]
        assert page.text == "\n".join(line.text for line in left + right)
        gap = min(b.box_xyxy_px[0] - a.box_xyxy_px[2] for a in left for b in right)
        assert gap > page.lines[0].advance_px, "wider than the space between two words"
        assert [line.top_px for line in left] == sorted(line.top_px for line in left)
        assert {line.top_px for line in right} <= {line.top_px for line in left}


def test_lines_stand_inside_the_page_and_do_not_overlap() -> None:
    for page in PAGES:
        boxes = [line.box_xyxy_px for line in page.lines]
        for k, (x1, y1, x2, y2) in enumerate(boxes):
            assert 0 < x1 < x2 <= 96
            assert 0 < y1 < y2 <= 96
            for a1, b1, a2, b2 in boxes[:k]:
                assert min(x2, a2) <= max(x1, a1) or min(y2, b2) <= max(y1, b1)


def test_ink_lies_in_the_cells_of_characters_and_nowhere_else() -> None:
    for page in PAGES[:20]:
        grey = np.asarray(page.image, dtype=float).mean(-1)
        dark = np.median(grey) - grey > 30
        for line in page.lines:
            x1, y1, x2, y2 = line.box_xyxy_px
            cells = dark[y1:y2, x1:x2].reshape(line.height_px, len(line.text), line.advance_px)
            inked = cells.any(axis=(0, 2))
            assert [bool(value) for value in inked] == [c != " " for c in line.text]
            dark[y1:y2, x1:x2] = False
        assert not dark.any()


@pytest.mark.parametrize("size", [9, 11])
def test_every_character_looks_most_like_itself_as_pillow_draws_it(size: int) -> None:
    characters = LETTERS + PUNCTUATION
    masks = [glyph_mask(c, size, 7) / SUPERSAMPLING**2 for c in characters]
    drawn = [drawn_by_pillow(c, size, 7, masks[0].shape[0]) for c in characters]
    distances = [[float(((a - b) ** 2).sum()) for b in drawn] for a in masks]
    assert [int(np.argmin(row)) for row in distances] == list(range(len(characters)))
    assert max(row[k] for k, row in enumerate(distances)) < 0.5


def test_no_size_lets_a_character_leave_its_cell() -> None:
    for size in PAGE_PRESETS["small"].sizes:
        tight = int(np.ceil(0.602 * size - 0.05))
        for character in LETTERS + PUNCTUATION:
            roomy = glyph_mask(character, size, tight + 2)
            assert roomy.sum() - glyph_mask(character, size, tight).sum() <= 2
            assert not roomy[:, 0].any()
