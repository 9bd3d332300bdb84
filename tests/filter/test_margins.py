"""Which lists are kept, with the exact reason for each that is not."""

import polars as pl
import pytest

from perpo_pipeline.config.filter import FilterConfig
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.filter.filter_lists import summarise
from perpo_pipeline.filter.margins import (
    list_margins,
    margin_counts,
    reasons_to_drop,
)
from perpo_pipeline.rewards.margins import margin_table

Lists = dict[str, list[tuple[float, bool]]]


def decided(
    lists: Lists, config: FilterConfig, datasets: dict[str, str] | None = None
) -> dict[str, str | None]:
    table = with_reasons(lists, config, datasets)
    return dict(zip(table["prompt_id"], table["reason"], strict=True))


def with_reasons(
    lists: Lists, config: FilterConfig, datasets: dict[str, str] | None = None
) -> pl.DataFrame:
    scores = pl.DataFrame(
        [
            {"prompt_id": key, "sample_id": i, "reward": reward, "parse_ok": ok}
            for key, entries in lists.items()
            for i, (reward, ok) in enumerate(entries)
        ]
    )
    named = [(datasets or {}).get(key, "d") for key in lists]
    table = list_margins(scores, config).with_columns(dataset=pl.Series(named))
    return table.with_columns(reason=reasons_to_drop(table, config))


def one(*rewards: float) -> list[tuple[float, bool]]:
    return [(reward, True) for reward in rewards]


def test_lists_are_kept_in_order_and_dropped_with_exact_reasons() -> None:
    given = {
        "wide": one(0.9, 0.0),
        "flat": one(0.5, 0.5),
        "narrow": one(0.5, 0.4),
        "edge": one(0.9, 0.1),
    }
    assert list(decided(given, FilterConfig(min_margin=0.8)).items()) == [
        ("wide", None),
        ("flat", "no_preference"),
        ("narrow", "margin_too_small"),
        ("edge", None),
    ]


def test_margins_above_max_margin_are_dropped() -> None:
    config = FilterConfig(min_margin=0.2, max_margin=0.6)
    given = {"a": one(0.9, 0.0), "b": one(0.7, 0.1), "c": one(0.3, 0.2)}
    assert list(decided(given, config).values()) == [
        "margin_too_large",
        None,
        "margin_too_small",
    ]


def test_a_tied_list_is_dropped_even_with_min_margin_0() -> None:
    given = {"flat": one(0.5, 0.5), "ok": one(0.5, 0.4)}
    assert decided(given, FilterConfig(min_margin=0.0)) == {"flat": "no_preference", "ok": None}


def test_with_list_size_the_margin_is_that_of_the_first_samples() -> None:
    given = {"late": one(0.5, 0.4, 1.0), "early": one(0.0, 1.0, 1.0), "short": one(1.0)}
    config = FilterConfig(min_margin=0.5, list_size=2)
    assert decided(given, config) == {
        "late": "margin_too_small",
        "early": None,
        "short": "too_few_samples",
    }


def test_with_drop_unparsed_the_margin_is_that_of_the_other_answers() -> None:
    given = {"a": [(0.9, True), (0.0, False)], "b": [(0.0, False)] * 2, "c": one(0.9, 0.0)}
    config = FilterConfig(min_margin=0.5)
    assert decided(given, config) == {"a": None, "b": "no_preference", "c": None}
    strict = FilterConfig(min_margin=0.5, drop_unparsed=True)
    assert decided(given, strict) == {"a": "no_preference", "b": "all_unparsed", "c": None}


def test_the_cap_chooses_independently_of_row_order_and_keeps_the_rest_aside() -> None:
    names = [f"p{i}" for i in range(50)]
    config = FilterConfig(min_margin=0.1, max_lists=10)
    forward = decided({n: one(1.0, 0.0) for n in names}, config)
    backward = decided({n: one(1.0, 0.0) for n in names[::-1]}, config)
    assert forward == backward
    assert sorted(map(str, forward.values())) == ["None"] * 10 + ["over_cap"] * 40
    other = FilterConfig(min_margin=0.1, max_lists=10, seed=1)
    assert decided({n: one(1.0, 0.0) for n in names}, other) != forward


def test_equal_datasets_keep_as_many_lists_of_each() -> None:
    """5 wide lists of a, 3 of b: 3 each; with a cap of 5, 2 each (5 // 2)."""
    given = {f"a{i}": one(1.0, 0.0) for i in range(5)} | {f"b{i}": one(1.0, 0.0) for i in range(3)}
    datasets = {key: key[0] for key in given}
    for cap, share in ((None, 3), (5, 2)):
        config = FilterConfig(min_margin=0.1, max_lists=cap, equal_datasets=True)
        reasons = decided(given, config, datasets)
        kept = [key[0] for key, reason in reasons.items() if reason is None]
        assert (kept.count("a"), kept.count("b")) == (share, share)
        assert set(reasons.values()) == {None, "over_dataset_share"}


def test_a_dataset_without_lists_makes_equal_amounts_impossible() -> None:
    given = {"a": one(1.0, 0.0), "b": one(0.5, 0.5)}
    config = FilterConfig(min_margin=0.1, equal_datasets=True)
    with pytest.raises(ArtifactError, match="equal amounts per dataset are impossible"):
        decided(given, config, {"a": "x", "b": "y"})


def test_the_summary_shows_how_much_of_the_margin_unparsed_answers_make() -> None:
    """Margins 0.9 and 0.8; without the unparsed answer the first is 0.9 - 0.6 = 0.3."""
    given = {"a": [(0.9, True), (0.6, True), (0.0, False)], "b": one(0.9, 0.1)}
    table = with_reasons(given, FilterConfig(min_margin=0.8))
    counts = summarise(table, 0.8)
    assert counts["mean_margin"] == pytest.approx(0.85)
    assert counts["margin_from_unparsed"] == pytest.approx(0.3)
    assert counts["kept_by_unparsed_only"] == 1


def test_the_histogram_and_the_thresholds_count_by_hand() -> None:
    """Margins 0, 0.05, 0.3, 0.3, 1: no threshold keeps the tied list, the last bin is closed."""
    lists = pl.DataFrame(
        {"margin": [0.0, 0.05, 0.3, 0.9 - 0.6, 1.0], "reason": [None] * 5},
        schema_overrides={"reason": pl.String},
    )
    counts = margin_counts(lists)
    assert counts["histogram"] == [2, 0, 0, 2, 0, 0, 0, 0, 0, 1]
    assert counts["kept_at"]["0.0"] == 4
    assert counts["kept_at"]["0.1"] == counts["kept_at"]["0.3"] == 3
    assert counts["kept_at"]["0.4"] == counts["kept_at"]["1.0"] == 1
    lines = margin_table(counts).splitlines()
    assert lines[1].split() == ["0.0-0.1", "2", "#" * 30, "0.0:", "4"]
    assert lines[-1].split() == ["1.0:", "1"]


def test_a_list_that_no_threshold_keeps_is_not_counted() -> None:
    """Margins 0.9 (too large), 0.4, and of too few samples: one list for every threshold to 0.4."""
    config = FilterConfig(min_margin=0.0, max_margin=0.5, list_size=2)
    table = with_reasons({"a": one(0.9, 0.0), "b": one(0.5, 0.1), "c": one(1.0)}, config)
    counts = margin_counts(table)
    assert counts["histogram"] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert [counts["kept_at"][f"{t / 10:.1f}"] for t in (0, 4, 5, 9)] == [1, 1, 0, 0]


def test_a_preference_only_over_an_unparsed_answer_is_counted_at_any_margin() -> None:
    table = with_reasons({"a": [(0.5, True), (0.0, False)]}, FilterConfig(min_margin=0.0))
    assert summarise(table, 0.0)["kept_by_unparsed_only"] == 1
