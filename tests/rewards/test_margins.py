"""Bins of margins that show the threshold, and what each edge keeps, counted by hand."""

import numpy as np

from perpo_pipeline.rewards.margins import TENTHS, count_margins, margin_edges, margin_table


def test_a_threshold_on_a_tenth_needs_tenths_only() -> None:
    assert margin_edges(0.8, np.array([0.2, 0.9])) == list(TENTHS)


def test_a_threshold_of_four_hundredths_divides_the_first_tenth() -> None:
    edges = margin_edges(0.04, np.array([0.5, 0.9]))
    assert edges[:11] == [0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1]
    assert edges[11:] == list(TENTHS[2:])
    assert margin_edges(0.85, np.array([]))[8:19] == [(80 + i) / 100 for i in range(11)]
    assert 0.125 in margin_edges(0.125, np.array([]))


def test_a_threshold_that_reads_like_another_edge_takes_its_place() -> None:
    for threshold in (0.7999999, 0.3000001, 0.8000004, 1e-6, 0.9999999):
        edges = margin_edges(threshold, np.array([]))
        counts = count_margins(np.array([0.1, 0.9]), np.array([True, True]), edges)
        assert threshold in edges and len(counts["kept_at"]) == len(edges)
        assert "kept with" in margin_table(counts)


def test_small_margins_divide_the_first_tenth_whatever_the_threshold_is() -> None:
    assert margin_edges(0.8, np.array([0.02, 0.05, 0.9]))[1] == 0.01
    assert margin_edges(0.8, np.array([0.02, 0.5, 0.9]))[1] == 0.1


def test_lists_around_four_hundredths_are_counted_on_both_sides() -> None:
    margins = np.array([0.0, 0.039, 0.04, 0.05, 0.3, 1.0])
    usable = np.array([True, True, True, True, False, True])
    edges = margin_edges(0.04, margins)
    counts = count_margins(margins, usable, edges)
    by_edge = dict(zip(counts["kept_at"], counts["histogram"], strict=False))
    counted = {e: n for e, n in by_edge.items() if n}
    assert list(counted) == ["0.0", "0.03", "0.04", "0.05", "0.3", "0.9"]
    assert set(counted.values()) == {1}
    assert [counts["kept_at"][t] for t in ("0.0", "0.03", "0.04", "0.05", "1.0")] == [4, 4, 3, 2, 1]
    lines = margin_table(counts).splitlines()
    assert lines[5].split() == ["0.04-0.05", "1", "#" * 30, "0.04:", "3"]
    assert lines[-1].split() == ["1.0:", "1"]
