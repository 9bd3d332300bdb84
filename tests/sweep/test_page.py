"""The page of a sweep, from rows made by hand."""

import json
import re
from pathlib import Path
from typing import Any

from sweep.fake_stages import write_files

from perpo_pipeline.evaluate.metrics import METRICS
from perpo_pipeline.sweep.cells import make_cells
from perpo_pipeline.sweep.curves import find_curves
from perpo_pipeline.sweep.file import read_sweep
from perpo_pipeline.sweep.page import sweep_page

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
}


def test_a_curve_changes_one_parameter_and_keeps_the_others_as_chosen() -> None:
    found = find_curves(ROWS, COLOURS)
    assert list(found) == ["train.beta"]  # no other gamma beside beta 0.5
    dpo, perpo = found["train.beta"]
    assert [point.x for point in dpo.points] == [0.1, 1]
    assert [point.x for point in perpo.points] == [0.1, 0.5, 1]
    assert [point.value for point in perpo.points] == [0.65, 0.72, 0.7]
    assert perpo.points[1].seeds == (0.71, 0.73) and perpo.points[1].is_selected


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
    assert page.count("<svg") == 2
    assert not re.search(r'(?:src|href)="(?!#)', page)  # self-contained
    assert sweep_page(file, cells, METRICS["ap50"], ROWS, [DIFFERENCE], [edge]) == page
