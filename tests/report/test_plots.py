"""Plots write their numbers in the unit of their metric."""

import re

import numpy as np

from perpo_pipeline.evaluate.metric import FRACTION, PERCENT, Unit
from perpo_pipeline.report.page.plots import (
    Bar,
    Curve,
    Part,
    best_of_n_plot,
    curve_plot,
    histogram,
    histogram_edges,
    interval_plot,
)
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


def test_the_labels_of_an_axis_are_few_enough_to_be_read():
    """The differences of a run on pages: 0.2 wide, in steps of 0.025 they met."""
    bars = [Bar("- Base", "red", -0.127, -0.140, -0.113), Bar("- SFT", "red", 0.017, 0.014, 0.020)]
    found = texts(interval_plot(bars, x_label="x", unit=FRACTION, name="plot", zero=True))
    ticks = [text for text in found if re.fullmatch(r"-?\d\.\d+", text) and text != "-0.127"]
    assert 3 <= len(ticks) <= 6


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
        "On the same 9 prompts, the difference in edit distance is -0.100 [-0.200, -0.050] "
        "(lower is better)."
    )


def test_a_small_threshold_is_the_edge_of_a_bin_with_two_bins_below_it():
    edges = histogram_edges(0.04, [np.array([0.01, 0.06, 0.2])])
    assert edges[:4] == [0, 0.02, 0.04, 0.06] and edges[-1] == 0.2
    assert histogram_edges(0.04, [np.array([0.01, 0.9])])[-1] >= 0.9
    usual = histogram_edges(0.8, [np.array([0.1, 1.0])])
    assert len(usual) == 21 and 0.8 in usual and usual[-1] == 1
    for none in (None, 0.0):
        assert histogram_edges(none, []) == usual or len(histogram_edges(none, [])) == 21


def test_the_last_bin_holds_the_largest_value():
    """A margin of .1 - .01 is 0.09000000000000001, which no edge at 0.09 holds."""
    values = np.array([0.1 - 0.01, 0.02])
    assert values[0] > 0.09
    edges = histogram_edges(0.02, [values])
    assert np.histogram(values, bins=edges)[0].sum() == 2
    assert edges[-1] == values[0] and len(edges) == 10


def test_a_tiny_threshold_is_an_edge_and_the_bins_stay_few():
    for threshold in (0.003, 1e-6):
        edges = histogram_edges(threshold, [np.array([0.2, 1.0])])
        assert threshold in edges and len(edges) <= 122 and edges == sorted(edges)
        assert edges[-1] == 1 and edges[0] == 0


def test_a_histogram_of_nothing_is_an_empty_plot():
    empty = [Part("kept", "#000000", np.array([]))]
    assert "<svg" in histogram(empty, x_label="x", y_label="y", name="n", threshold=0.8)


def test_a_curve_that_equals_an_earlier_one_is_dashed_so_that_both_are_seen():
    steps, values = np.arange(8.0), np.arange(8.0)
    first, same = Curve("#111111", steps, values), Curve("#222222", steps, values)
    other = Curve("#333333", steps, values + 1)
    svg = curve_plot([first, same, other], name="plot")
    lines = re.findall(r"<path[^>]*stroke: var\(--c-\d{6}\)[^>]*", svg)
    dashed = ["dasharray" in line for line in lines]
    assert dashed == [False, True, False]


def test_colours_of_a_plot_are_variables_of_the_page():
    svg = interval_plot([BAR], x_label="x", unit=PERCENT, name="plot")
    assert "var(--c-1d5fd1)" in svg and "var(--t-1d5fd1)" in svg and "var(--ink)" in svg
    assert not re.findall(r"[: ]#[0-9a-f]{6}", svg)
