"""Plots write their numbers in the unit of their metric."""

import re

import numpy as np

from perpo_pipeline.evaluate.metric import FRACTION, PERCENT, Unit
from perpo_pipeline.report.page.plots import Bar, best_of_n_plot, interval_plot
from perpo_pipeline.report.page.wording import format_of, paired_sentence
from perpo_pipeline.report.paired import Comparison

BAR = Bar("PerPO", "#1d5fd1", 0.1234, 0.1, 0.15)


def texts(svg: str) -> list[str]:
    """The texts of a plot, with ASCII signs."""
    return [text.replace("−", "-") for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def test_an_interval_has_its_value_in_the_unit_of_the_metric():
    for unit, value in ((PERCENT, "12.3"), (FRACTION, "0.123"), (Unit("‰", 1000.0, 0), "123")):
        found = texts(interval_plot([BAR], x_label="x", unit=unit, name="plot"))
        assert value in found and "PerPO" in found


def test_a_difference_has_its_sign():
    found = texts(interval_plot([BAR], x_label="x", unit=PERCENT, name="plot", zero=True))
    assert "+12.3" in found


def test_the_best_of_n_has_its_first_and_last_value_in_the_unit_of_the_metric():
    values = np.array([0.5, 0.6, 0.75])
    found = texts(best_of_n_plot(values, y_label="y", unit=PERCENT, colour="red", name="plot"))
    assert {"50.0", "75.0"} <= set(found)
    found = texts(best_of_n_plot(values, y_label="y", unit=FRACTION, colour="red", name="plot"))
    assert {"0.500", "0.750"} <= set(found)


def test_differences_are_in_points_only_if_the_metric_is_in_per_cent():
    assert format_of("ap50").axis == "AP@50, %" and format_of("ap50").points == "points"
    assert format_of("cer").axis == "CER" and format_of("cer").points == ""
    paired = Comparison(
        "edit_distance", "perpo", "base", -0.1, -0.2, -0.05, 0.01, "bootstrap", 9, split="test"
    )
    assert paired_sentence(paired).replace("\u00a0", " ") == (
        "On the same 9 prompts, the difference in edit distance is -0.100 [-0.200, -0.050]."
    )
