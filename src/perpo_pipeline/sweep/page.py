"""The page of a sweep: one HTML file without anything from elsewhere."""

import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from math import isnan
from pathlib import Path
from typing import Any

from perpo_pipeline.config.evaluations import BASE
from perpo_pipeline.config.methods import METHODS
from perpo_pipeline.evaluate.compare import p_text
from perpo_pipeline.evaluate.metric import Metric
from perpo_pipeline.report.methods import BASE_COLOUR, MORE_COLOURS
from perpo_pipeline.report.page.html import page_environment, with_colours
from perpo_pipeline.report.page.plots import Bar, interval_plot
from perpo_pipeline.sweep.cells import Cell, chosen_where_compared, setting_words
from perpo_pipeline.sweep.curves import curve_svg, find_curves, value_of_base
from perpo_pipeline.sweep.file import SweepFile
from perpo_pipeline.sweep.table import claim_words, seeds_note

Row = Mapping[str, Any]
Json = dict[str, Any]
QUICK = "A quick version: too few values, seeds, prompts and lists to see anything."


def sweep_page(
    file: SweepFile,
    cells: Sequence[Cell],
    metric: Metric,
    rows: Sequence[Row],
    differences: Sequence[Row],
    edges: Sequence[str],
    *,
    is_quick: bool = False,
) -> str:
    """The whole page; `rows` and `differences` are those of the artifact."""
    colours = method_colours(cells)
    y_label = metric.label_with_unit
    split = split_of_curves(file)
    own = [row for row in rows if row["split"] == split]
    curves = find_curves(own, colours, file.together(), file.x)
    template = page_environment(Path(__file__).parent).get_template("sweep.html")
    text = template.render(
        file=file,
        run=cells[0].config.run,
        num_cells=len(cells),
        seeds=sorted({cell.seed for cell in cells if cell.seed is not None}),
        seeds_note=seeds_note(rows),
        metric=y_label,
        quick=QUICK if is_quick else None,
        lower=metric.higher_is_better is False,
        splits=list(dict.fromkeys(row["split"] for row in rows)),
        table=_table(rows, metric, colours),
        edges=edges,
        chosen_here=chosen_where_compared(file, cells),
        curves=[
            {
                "key": key,
                "methods": [(one.method, one.colour) for one in found],
                "svg": curve_svg(
                    found,
                    unit=metric.unit,
                    x_label=x_label(key, file),
                    y_label=y_label,
                    base=value_of_base(own),
                ),
            }
            for key, found in curves.items()
        ],
        split_of_curves=split,
        has_base=value_of_base(own) is not None,
        differences=_differences(differences, metric),
        plot=_difference_plot(differences, metric, colours),
    )
    return with_colours(text)


def x_label(key: str, file: SweepFile) -> str:
    """A parameter, and those that vary together with it."""
    group = next((names for names in file.together() if key in names), (key,))
    others = [name for name in group if name != key]
    return f"{key} (and {', '.join(others)})" if others else key


def split_of_curves(file: SweepFile) -> str:
    """The split on which every setting is measured."""
    is_all = file.report_cells == "all" or file.select_on is None
    return (file.report_on if is_all else file.select_on) or file.splits[0]


def method_colours(cells: Sequence[Cell]) -> dict[str, str]:
    """A colour for each method; entries with names of their own get further ones."""
    more = cycle(MORE_COLOURS)
    found: dict[str, str] = {}
    for cell in cells:
        if cell.method not in found:
            known = METHODS.get(cell.method)
            own = BASE_COLOUR if cell.method == BASE else known.colour if known else next(more)
            found[cell.method] = own
    return found


def _table(rows: Sequence[Row], metric: Metric, colours: Mapping[str, str]) -> list[Json]:
    """One entry per setting of a method, with its cells by split."""
    found = []
    for method, setting in dict.fromkeys((row["method"], row["setting"]) for row in rows):
        own = [row for row in rows if (row["method"], row["setting"]) == (method, setting)]
        found.append(
            {
                "method": method,
                "colour": colours[method],
                "setting": setting_words(json.loads(setting)),
                "is_selected": own[0]["is_selected"],
                "cells": {
                    split: _cell([row for row in own if row["split"] == split], metric)
                    for split in dict.fromkeys(row["split"] for row in own)
                },
                "lineage": [(row["split"], row["seed"], row["metrics"]) for row in own],
            }
        )
    return found


def _cell(rows: Sequence[Row], metric: Metric) -> Json:
    unit, last = metric.unit, rows[-1]
    return {
        "value": unit.number(last["value"]),
        "interval": f"[{unit.number(last['low'])}, {unit.number(last['high'])}]",
        "seeds": [unit.number(row["value"]) for row in rows if row["num_seeds"] == 1],
        "n": last["n"],
    }


def _differences(differences: Sequence[Row], metric: Metric) -> list[Json]:
    unit = metric.unit
    return [
        {
            "pair": f"{row['better']} − {row['worse']}",
            "difference": unit.signed(row["difference"]),
            "interval": "–"
            if isnan(row["low"])
            else f"[{unit.signed(row['low'])}, {unit.signed(row['high'])}]",
            "p": "–" if isnan(row["p_adjusted"]) else p_text(row["p_adjusted"]),
            "claimed": claim_words(row),
            "se_prompts": unit.number(row["se_prompts"]),
            "se_seeds": "–" if isnan(row["se_seeds"]) else unit.number(row["se_seeds"]),
            "n": row["n"],
        }
        for row in differences
    ]


def _difference_plot(
    differences: Sequence[Row], metric: Metric, colours: Mapping[str, str]
) -> str | None:
    known = [row for row in differences if not isnan(row["low"])]
    bars = [
        Bar(
            f"{row['better']} − {row['worse']}",
            colours[row["better"]],
            row["difference"],
            row["low"],
            row["high"],
        )
        for row in known
    ]
    label = f"difference in {metric.label}"
    if not bars:
        return None
    return interval_plot(bars, x_label=label, unit=metric.unit, name=label, zero=True)
