"""Pictures and tables of sweeps, from rows made by hand."""

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

from sweep.fake_stages import SWEEP, write_files
from sweep.test_page import DIFFERENCE, ROWS, rows_of

from perpo_pipeline.sweep.cells import make_cells
from perpo_pipeline.sweep.figures import Finished, write_figures
from perpo_pipeline.sweep.file import read_sweep

BASE = rows_of("base", {}, 0.5, True)[-1:]
DONE = {**DIFFERENCE, "split": "test"}


def finished(folder: Path, more: str = "", **changes: object) -> Finished:
    file = read_sweep(write_files(folder, SWEEP + more))
    given = {"rows": [*BASE, *ROWS], "differences": [DONE], **changes}
    return Finished(file, make_cells(file), **given)  # type: ignore[arg-type]


def test_each_sweep_has_a_picture_for_light_and_dark_pages_and_its_tables(tmp_path: Path) -> None:
    words = "title: The scale\npaper: 'Table 4: flat'\n"
    out = tmp_path / "figures"
    page = write_figures(out, [finished(tmp_path, words)]).read_text()
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "beta.svg"]
    svg = (out / "beta.svg").read_text()
    assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in svg and "--ink: #1b1f24;" in svg
    assert "--ink: #e7eaee;" in svg
    for name in ("base", "dpo", "perpo", "train.beta", "AP@50, % on validation"):
        assert f">{name}<" in svg
    assert "## The scale\n\nThe paper: Table 4: flat\n\n![The scale](beta.svg)" in page
    assert "| base | - | 50.0 [45.0, 55.0] |  |" in page
    assert "| dpo | **train.beta 0.1** | 61.0 [56.0, 66.0] | 60.0, 62.0 |" in page
    assert "| dpo | train.beta 1 | 60.0 [55.0, 65.0] | 59.0, 61.0 |" in page
    assert "| perpo - dpo | +10.0 | [+5.0, +15.0] | < 0.001 | yes |" in page
    assert "1,000 prompts of validation; seeds 0, 1." in page and "quick" not in page
    before = svg, page
    write_figures(out, [finished(tmp_path, words)])
    assert before == ((out / "beta.svg").read_text(), (out / "README.md").read_text())


def test_a_sweep_without_parameters_shows_the_methods_and_a_quick_one_says_so(
    tmp_path: Path,
) -> None:
    rows = [*BASE, *rows_of("perpo", {}, 0.7, True)[:1]]
    names = {"better": "perpo", "worse": "base", "seeds_better": 1}
    unknown = {**DONE, **names, "p_adjusted": float("nan")}
    one = finished(tmp_path, rows=rows, differences=[unknown], is_quick=True)
    page = write_figures(tmp_path / "figures", [one]).read_text()
    svg = (tmp_path / "figures" / "beta.svg").read_text()
    assert ">base<" in svg and ">perpo<" in svg and ">method<" in svg
    assert "## Sweep beta\n\n**A quick version: too few" in page
    assert "| perpo - base | +10.0 | - | - | one seed: not claimed |" in page


def test_sections_of_other_sweeps_stay_and_its_own_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "figures"
    beta = finished(tmp_path, "title: The scale\n")
    gamma = replace(beta, file=beta.file.model_copy(update={"sweep": "gamma", "title": "Gaps"}))
    write_figures(out, [beta, gamma])
    both = (out / "README.md").read_text()
    assert [line for line in both.splitlines() if line.startswith("#")] == [
        "# Figures",
        "## The scale",
        "## Gaps",
    ]
    again = replace(beta, file=beta.file.model_copy(update={"title": "Beta"}))
    assert write_figures(out, [again]).read_text() == both.replace("The scale", "Beta")


def test_a_base_far_off_is_a_number_and_no_line(tmp_path: Path) -> None:
    far = [{**row, "value": 0.2, "low": 0.15, "high": 0.25} for row in BASE]
    write_figures(tmp_path / "figures", [finished(tmp_path, rows=[*far, *ROWS])])
    svg = (tmp_path / "figures" / "beta.svg").read_text()
    assert ">base: 20.0, below<" in svg and ">base<" not in svg
