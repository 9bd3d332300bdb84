"""Colours that can be read on both themes."""

import pytest

from perpo_pipeline.config.methods import METHODS
from perpo_pipeline.report.methods import BASE_COLOUR, MORE_COLOURS
from perpo_pipeline.report.page.colours import (
    DARK_PAPER,
    DARK_TINTED,
    PAPER,
    TINTED,
    contrast,
    readable,
    reward_colour,
    themed,
    variables,
)

COLOURS = [BASE_COLOUR, *MORE_COLOURS, *(method.colour for method in METHODS.values())]


def test_contrasts_are_those_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert contrast("#1d5fd1", "#1d5fd1") == pytest.approx(1)


@pytest.mark.parametrize("colour", COLOURS)
def test_the_colour_of_every_method_can_be_read_as_text(colour):
    for dark, papers in ((False, (PAPER, TINTED)), (True, (DARK_PAPER, DARK_TINTED))):
        found = readable(colour, papers, 4.5, dark=dark)
        assert all(contrast(found, paper) >= 4.5 for paper in papers)


def test_a_colour_that_can_be_read_stays_as_it_is():
    assert readable("#1d5fd1", (PAPER,), 4.5, dark=False) == "#1d5fd1"


def test_the_style_sheet_has_each_colour_that_the_page_uses():
    page = f"{themed('#d0601a')} {themed('#d0601a', is_text=True)} {themed('#1b1f24')}"
    assert page == "var(--c-d0601a) var(--t-d0601a) var(--ink)"
    light, dark = (variables(page, dark=is_dark) for is_dark in (False, True))
    assert "--c-d0601a: #d0601a;" in light and "--t-d0601a: #" in light and "ink" not in light
    assert light != dark


def test_rewards_go_from_orange_over_grey_to_blue():
    assert [reward_colour(at) for at in (0, 0.5, 1)] == ["#b5480a", "#8a8f98", "#1d5fd1"]
