"""The page of a sweep, from rows made by hand."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from sweep.fake_stages import SWEEP, write_files

from perpo_pipeline.evaluate.metric import PERCENT
from perpo_pipeline.evaluate.metrics import METRICS
from perpo_pipeline.sweep.cells import make_cells, shown_value
from perpo_pipeline.sweep.curves import (
    Curve,
    Point,
    curve_svg,
    find_curves,
    is_geometric,
    would_touch,
)
from perpo_pipeline.sweep.file import read_sweep
from perpo_pipeline.sweep.page import sweep_page
from perpo_pipeline.sweep.table import claim_words, seeds_note, sweep_table

NAMES = ("value", "low", "high")


def rows_of(
    method: str, setting: dict[str, Any], value: float, chosen: bool
) -> list[dict[str, Any]]:
    """Two seeds and their mean."""
    shared = {
        "method": method,
        "setting": json.dumps(setting),
        "metric": "ap50",
        "n": 1000,
        "split": "validation",
        "is_selected": chosen,
        "metrics": "0123456789abcdef",
    }
    return [
        {**shared, "seed": seed, "num_seeds": 2 if seed is None else 1}
        | dict(zip(NAMES, (value + off, value - 0.05, value + 0.05), strict=True))
        for seed, off in ((0, -0.01), (1, 0.01), (None, 0.0))
    ]


ROWS = [
    *rows_of("dpo", {"train.beta": 0.1}, 0.61, True),
    *rows_of("dpo", {"train.beta": 1}, 0.6, False),
    *rows_of("perpo", {"train.beta": 1, "train.gamma": 1}, 0.7, False),
    *rows_of("perpo", {"train.beta": 0.5, "train.gamma": 1}, 0.72, True),
    *rows_of("perpo", {"train.beta": 0.1, "train.gamma": 1}, 0.65, False),
    *rows_of("perpo", {"train.beta": 0.1, "train.gamma": 2}, 0.5, False),
]
COLOURS = {"dpo": "#0b857c", "perpo": "#1d5fd1"}
DIFFERENCE = {
    "better": "perpo",
    "worse": "dpo",
    "difference": 0.1,
    "low": 0.05,
    "high": 0.15,
    "p_adjusted": 0.0004,
    "se_prompts": 0.02,
    "se_seeds": 0.01,
    "n": 1000,
    "is_claimed": True,
    "seeds_better": 2,
    "seeds_worse": 2,
}


def test_a_curve_changes_one_parameter_and_keeps_the_others_as_chosen() -> None:
    found = find_curves(ROWS, COLOURS)
    assert list(found) == ["train.beta"]  # no other gamma beside beta 0.5
    dpo, perpo = found["train.beta"]
    assert [point.x for point in dpo.points] == [0.1, 1]
    assert [point.x for point in perpo.points] == [0.1, 0.5, 1]
    assert [point.value for point in perpo.points] == [0.65, 0.72, 0.7]
    assert perpo.points[1].seeds == (0.71, 0.73) and perpo.points[1].is_selected


def test_parameters_that_vary_together_have_one_curve_and_x_chooses_it() -> None:
    ranks = [
        *rows_of(
            "perpo", {"train.lora.rank": 2, "train.lora.alpha": 4, "train.beta": 1}, 0.6, True
        ),
        *rows_of(
            "perpo", {"train.lora.rank": 8, "train.lora.alpha": 16, "train.beta": 1}, 0.5, False
        ),
        *rows_of(
            "perpo", {"train.lora.rank": 2, "train.lora.alpha": 4, "train.beta": 2}, 0.4, False
        ),
    ]
    together = [("train.lora.rank", "train.lora.alpha"), ("train.beta",)]
    found = find_curves(ranks, COLOURS, together)
    assert list(found) == ["train.lora.rank", "train.beta"]
    assert [point.x for point in found["train.lora.rank"][0].points] == [2, 8]
    (only,) = find_curves(ranks, COLOURS, together, x="train.lora.alpha").items()
    assert only[0] == "train.lora.alpha" and [point.x for point in only[1][0].points] == [4, 16]


def test_a_setting_of_another_grid_without_the_parameter_has_no_point_on_its_curve() -> None:
    rows = [
        *rows_of("perpo", {"train.learning_rate": 1, "train.beta": 1}, 0.6, True),
        *rows_of("perpo", {"train.learning_rate": 1, "train.beta": 2}, 0.5, False),
        *rows_of("perpo", {"train.learning_rate": 1}, 0.4, False),
        *rows_of("perpo", {"train.learning_rate": 2}, 0.4, False),
    ]
    found = find_curves(rows, COLOURS)
    assert [(name, len(curve.points)) for name, (curve,) in found.items()] == [("train.beta", 2)]


@pytest.mark.parametrize(("base", "side"), [(0.9, "above"), (0.1, "below"), (0.62, "")])
def test_the_base_stands_on_its_side_also_where_curves_have_no_intervals(
    base: float, side: str
) -> None:
    points = tuple(Point(x, v, math.nan, math.nan, (v,), False) for x, v in ((1, 0.6), (2, 0.64)))
    svg = curve_svg(
        [Curve("perpo", "#1d5fd1", points)], unit=PERCENT, x_label="x", y_label="y", base=base
    )
    assert [word for word in ("above", "below") if word in svg] == [side] * bool(side)


def test_labels_that_would_touch_are_turned() -> None:
    rates = [5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3]
    places = [math.log(rate) for rate in rates]
    assert would_touch(places, [shown_value(rate) for rate in rates])
    assert not would_touch([math.log(n) for n in (2, 4, 8, 12, 20)], ["2", "4", "8", "12", "20"])
    points = tuple(Point(rate, 0.5, 0.4, 0.6, (0.5,), False) for rate in rates)
    curve = Curve("perpo", "#1d5fd1", points)
    assert "rotate(-40)" in curve_svg([curve], unit=PERCENT, x_label="x", y_label="y")
    few = Curve("perpo", "#1d5fd1", points[::3])
    assert "rotate(-40)" not in curve_svg([few], unit=PERCENT, x_label="x", y_label="y")


def test_the_table_says_why_nothing_is_claimed() -> None:
    known = {"p_adjusted": 0.2, "is_claimed": False, "seeds_better": 3, "seeds_worse": 3}
    assert claim_words(known) == "no"
    assert claim_words({**known, "p_adjusted": math.nan}) == "no p-value: not claimed"
    assert claim_words({**known, "p_adjusted": math.nan, "seeds_worse": 1}).startswith("one seed")


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ((0,), None),
        ((0, 1), "chosen with seed 0, reported with seeds 0, 1: seed 0 chose, so its values may"),
        ((1, 2), "chosen with seed 0, reported with seeds 1, 2: these have chosen nothing"),
    ],
)
def test_the_note_says_which_seeds_chose_where_others_are_reported(
    tmp_path: Path, reported: tuple[int, ...], expected: str | None
) -> None:
    chosen = [{**row, "seed": 0, "num_seeds": 1} for row in ROWS if row["seed"] == 0]
    base = [row for row in rows_of("base", {}, 0.5, True) if row["seed"] is None]
    rows = [*base, *chosen]
    rows += [{**row, "split": "test", "seed": seed} for row in chosen for seed in reported]
    note = seeds_note(rows)
    file = read_sweep(write_files(tmp_path))
    page = sweep_page(file, make_cells(file), METRICS["ap50"], rows, [], [])
    if expected is None:
        assert note is None and "Settings were" not in page
    else:
        assert note is not None and note.startswith(expected)
        assert note in sweep_table(rows, []) and f"Settings were {note}." in page


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((2, 4, 8, 12, 20), True),
        ((50, 100, 200, 400, 800), True),
        ((0, 0.25, 0.5, 1, 2), False),  # 0 has no place on a logarithmic axis
        ((0.2, 0.5, 0.8, 1), False),
        ((0.01, 0.6, 0.7, 0.8, 0.9), False),
        ((1, 2), False),
        ((1, 10), True),
        ((3,), False),
    ],
)
def test_an_axis_is_logarithmic_where_the_values_are_spaced_by_their_ratios(
    values: tuple[float, ...], expected: bool
) -> None:
    assert is_geometric(values) == expected


def test_the_page_shows_choice_curves_seeds_and_differences_and_needs_nothing_else(
    tmp_path: Path,
) -> None:
    file = read_sweep(write_files(tmp_path))
    cells = make_cells(file)
    edge = "train.beta 0.1, chosen for dpo, is at the edge <of what was tried>"
    page = sweep_page(file, cells, METRICS["ap50"], ROWS, [DIFFERENCE], [edge])
    assert edge.replace("<", "&lt;").replace(">", "&gt;") in page
    chosen = page[page.index('id="chosen"') : page.index('id="curves"')]
    assert re.findall(r'data-method="(\w+)"', chosen) == ["dpo", "perpo"]
    assert "72.0" in chosen and "[67.0, 77.0]" in chosen and "validation: 71.0, 73.0" in chosen
    every = page[page.index('id="settings"') :]
    assert len(re.findall(r'data-method="', every)) == 6
    differences = page[page.index('id="differences"') : page.index('id="settings"')]
    assert "perpo − dpo" in differences and "+10.0" in differences and "&lt; 0.001" in differences
    assert page.count("<svg") == 2 and "dashed line" not in page
    assert "A quick version" not in page and 'id="paper"' not in page
    assert not re.search(r'(?:src|href)="(?!#)', page)  # self-contained
    assert sweep_page(file, cells, METRICS["ap50"], ROWS, [DIFFERENCE], [edge]) == page


def test_the_page_has_the_words_of_its_file_and_says_that_it_is_a_quick_one(tmp_path: Path) -> None:
    words = SWEEP + "title: The scale <beta>\npaper: 'Table 4: flat'\nx: train.beta\n"
    file = read_sweep(write_files(tmp_path, words))
    base = rows_of("base", {}, 0.5, True)
    rows, cells = [*base[-1:], *ROWS], make_cells(file)
    page = sweep_page(file, cells, METRICS["ap50"], rows, [], [], is_quick=True)
    assert "<h1>The scale &lt;beta&gt;</h1>" in page and "The paper: Table 4: flat" in page
    assert "A quick version" in page and "the dashed line is the base" in page
