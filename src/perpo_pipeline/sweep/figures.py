"""Pictures and tables of sweeps for a document: SVG files beside one Markdown page."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perpo_pipeline.evaluate.metric import Metric
from perpo_pipeline.evaluate.metrics import find_metric, lower_is_better
from perpo_pipeline.report.page.svg import svg_file
from perpo_pipeline.store.atomic import write_atomically
from perpo_pipeline.sweep.cells import Cell, setting_words
from perpo_pipeline.sweep.curves import (
    curve_svg,
    find_curves,
    methods_as_curves,
    value_of_base,
)
from perpo_pipeline.sweep.figures_folder import INDEX, METHOD, picture_name, sections_of
from perpo_pipeline.sweep.file import SweepFile
from perpo_pipeline.sweep.page import QUICK, method_colours, split_of_curves, x_label
from perpo_pipeline.sweep.table import difference_lines, seeds_note

Row = Mapping[str, Any]
INTRODUCTION = """# Figures

Made from sweeps by `perpo sweep --figures`; changes here are lost. Lines are
means over seeds with 95 % intervals over the prompts, ticks are single seeds, rings chosen
settings; the dashed line is the base, unless it lies so far off that only its number is shown."""


@dataclass(frozen=True)
class Finished:
    """A sweep with the rows of its artifact."""

    file: SweepFile
    cells: Sequence[Cell]
    rows: Sequence[Row]
    differences: Sequence[Row]
    is_quick: bool = False

    @property
    def metric(self) -> Metric:
        return find_metric(self.rows[0]["metric"])


def write_figures(folder: Path, sweeps: Sequence[Finished]) -> Path:
    """Write the pictures of these sweeps and the page with their tables; returns the page.

    Sections of other sweeps that the page has already stay; one of the same name is replaced.
    Raises `ConfigError` for a page that perpo has not written (`check_folder` sees that early).
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / INDEX
    sections = sections_of(page)
    for sweep in sweeps:
        pictures = draw_pictures(sweep)
        for name, svg in pictures.items():
            _write(folder / name, svg)
        sections[sweep.file.sweep] = "\n".join(_section(sweep, list(pictures)))
    marked = [f"<!-- sweep {name} -->\n\n{text}" for name, text in sections.items()]
    _write(page, "\n\n".join([INTRODUCTION, *marked]) + "\n")
    return page


def draw_pictures(sweep: Finished) -> dict[str, str]:
    """SVG files by name: a curve for each parameter, or else the methods side by side."""
    file, split = sweep.file, split_of_curves(sweep.file)
    own = [row for row in sweep.rows if row["split"] == split]
    colours = method_colours(sweep.cells)
    found = find_curves(own, colours, file.together(), file.x)
    base = value_of_base(own)
    if not found:
        found, base = {METHOD: methods_as_curves(own, colours)}, None
    y_label = f"{sweep.metric.label_with_unit} on {split}"
    pictures = {}
    for key, curves in found.items():
        name = picture_name(file, key, is_only=len(found) == 1)
        pictures[name] = svg_file(
            curve_svg(
                curves,
                unit=sweep.metric.unit,
                x_label=x_label(key, file),
                y_label=y_label,
                base=base,
                legend=key != METHOD,
            )
        )
    return pictures


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda sink: sink.write(text.encode()))


def _section(sweep: Finished, pictures: Sequence[str]) -> Iterator[str]:
    file, title = sweep.file, sweep.file.title or f"Sweep {sweep.file.sweep}"
    yield f"## {title}"
    if sweep.is_quick:
        yield from ("", f"**{QUICK}**")
    if file.paper:
        yield from ("", f"The paper: {file.paper}")
    for picture in pictures:
        yield from ("", f"![{title}]({picture})")
    yield from ("", _about(sweep), "", *_settings(sweep))
    if sweep.differences:
        yield from ("", *_differences(sweep))


def _about(sweep: Finished) -> str:
    """How the numbers were made, in one paragraph."""
    file, numbers = sweep.file, {row["split"]: row["n"] for row in sweep.rows}
    seeds = sorted({row["seed"] for row in sweep.rows if row["seed"] is not None})
    prompts = " and ".join(f"{n:,} prompts of {split}" for split, n in numbers.items())
    chosen = f" Bold: chosen on {file.select_on}." if file.select_on else ""
    if note := seeds_note(sweep.rows):
        chosen += f" Settings were {note}."
    mean = " of the mean over seeds" if len(seeds) > 1 else ""
    lower = lower_is_better([sweep.metric.name])
    more = f" {lower}." if lower else ""
    return (
        f"Sweep `{file.sweep}` of the run `{sweep.cells[0].config.run}`: {prompts}; seeds "
        f"{', '.join(map(str, seeds)) or 'none'}. [ ]: 95 % interval over the prompts{mean}."
        f"{chosen}{more}"
    )


def _settings(sweep: Finished) -> Iterator[str]:
    """A row per method and setting, with two columns per split."""
    splits = list(dict.fromkeys(row["split"] for row in sweep.rows))
    label = sweep.metric.label_with_unit
    head = ["method", "setting"]
    for split in splits:
        head += [f"{label} on {split}", "seeds"]
    yield from (_row(head), _row(["---"] * len(head)))
    for method, setting in dict.fromkeys((row["method"], row["setting"]) for row in sweep.rows):
        own = [r for r in sweep.rows if (r["method"], r["setting"]) == (method, setting)]
        words = ", ".join(setting_words(json.loads(setting))) or "-"
        is_bold = own[0]["is_selected"] and sweep.file.select_on is not None and setting != "{}"
        cells = [method, f"**{words}**" if is_bold else words]
        for split in splits:
            cells += _estimate([row for row in own if row["split"] == split], sweep.metric)
        yield _row(cells)


def _estimate(rows: Sequence[Row], metric: Metric) -> list[str]:
    """The value with its interval, and the values of the seeds."""
    if not rows:
        return ["", ""]
    unit, last = metric.unit, rows[-1]
    interval = f"[{unit.number(last['low'])}, {unit.number(last['high'])}]"
    seeds = [unit.number(row["value"]) for row in rows if row["num_seeds"] == 1]
    return [f"{unit.number(last['value'])} {interval}", ", ".join(seeds) if seeds[1:] else ""]


def _differences(sweep: Finished) -> Iterator[str]:
    head, *lines = difference_lines(sweep.differences, sweep.metric)
    yield from (_row(head), _row(["---"] * len(head)), *map(_row, lines))


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
