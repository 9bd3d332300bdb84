"""The manual's table of the families' own boxes comes from FAMILIES."""

from dataclasses import replace

import pytest

from perpo_pipeline.answers.boxes import BOX_FORMATS
from perpo_pipeline.vlm.families import FAMILIES, Family
from tools.manual.families_table import on_page_markdown

PAGE = "<!-- table of families -->\n"


def test_a_family_that_is_added_is_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    newcomer = Family("newcomer", "Newcomer-VL", box_format="pixel", box_source="its card")
    silent = Family("silent", "Silent-VL")
    monkeypatch.setitem(FAMILIES, "made_up", newcomer)
    monkeypatch.setitem(FAMILIES, "made_up_2", replace(newcomer, label="Newcomer 2"))
    monkeypatch.setitem(FAMILIES, "silent", silent)
    page = on_page_markdown(PAGE, None, None, None)
    *_, row = page.strip().splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "Newcomer-VL, Newcomer 2"
    assert cells[2:] == ["`[120, 340, 560, 780]`", "`pixel`", "`full`", "its card"]
    assert "Silent-VL" not in page


def test_every_row_has_the_cells_of_the_header() -> None:
    header, line, *rows = on_page_markdown(PAGE, None, None, None).splitlines()
    own = [family for family in FAMILIES.values() if family.box_format]
    assert sum(row.split("|")[1].count(",") + 1 for row in rows) == len(own)
    assert len(rows) == len({family.box_format for family in own})
    assert {text.count("|") for text in (header, line, *rows)} == {header.count("|")}


@pytest.mark.parametrize("box_format", BOX_FORMATS)
def test_a_row_has_as_many_cells_with_every_box_format(
    box_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = BOX_FORMATS[box_format].frame or "full"
    family = Family("newcomer", "New", box_format=box_format, box_frame=frame)
    monkeypatch.setitem(FAMILIES, "made_up", family)
    header, *rows = on_page_markdown(PAGE, None, None, None).splitlines()
    (row,) = (row for row in rows if "New |" in row)
    assert row.count("|") == header.count("|")
    assert ("&#124;" in row) == (
        box_format in ("glm-v", "deepseek-vl2", "deepseek-ocr", "qwen2-vl")
    )


def test_the_questions_are_those_of_the_formats_that_no_family_of_the_table_has() -> None:
    listed = on_page_markdown("<!-- questions of formats -->", None, None, None).splitlines()
    assert "- `kosmos-2`: `<grounding><phrase>{expression}</phrase>`" in listed
    shown = {family.box_format for family in FAMILIES.values()} - {None}
    assert len(listed) == len(BOX_FORMATS) - len(shown)


def test_other_pages_stay_as_they_are() -> None:
    assert on_page_markdown("# Title\n", None, None, None) == "# Title\n"
