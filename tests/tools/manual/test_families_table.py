"""The manual's list and table of model families come from FAMILIES."""

import pytest

from perpo_pipeline.answers.boxes import BOX_FORMATS
from perpo_pipeline.vlm.families import FAMILIES, Family
from tools.manual.families_table import on_page_markdown

PAGE = "Known: <!-- list of families -->.\n\n<!-- table of families -->\n"


def test_a_family_that_is_added_is_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    newcomer = Family("newcomer", "Newcomer-VL", box_format="pixel", lora_in_vllm=True)
    monkeypatch.setitem(FAMILIES, "made_up", newcomer)
    page = on_page_markdown(PAGE, None, None, None)
    named, rows = page.split("\n\n")
    assert named.startswith("Known: LLaVA-1.5, LLaVA-NeXT, ")
    assert named.endswith(" and Newcomer-VL.")
    *_, row = rows.strip().splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["Newcomer-VL", "`made_up`"]
    assert cells[3:] == ["`[120, 340, 560, 780]`", "`pixel`", "`full`", "yes"]


def test_every_row_has_the_cells_of_the_header() -> None:
    header, line, *rows = on_page_markdown(PAGE.split("\n\n")[1], None, None, None).splitlines()
    assert len(rows) == len(FAMILIES)
    assert {text.count("|") for text in (header, line, *rows)} == {header.count("|")}


@pytest.mark.parametrize("box_format", BOX_FORMATS)
def test_a_row_has_as_many_cells_with_every_box_format(
    box_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = BOX_FORMATS[box_format].frame or "full"
    family = Family("newcomer", "New", box_format=box_format, box_frame=frame)
    monkeypatch.setitem(FAMILIES, "made_up", family)
    header, *_, row = on_page_markdown(PAGE.split("\n\n")[1], None, None, None).splitlines()
    assert row.count("|") == header.count("|")
    assert ("&#124;" in row) == (
        box_format in ("glm-v", "deepseek-vl2", "deepseek-ocr", "qwen2-vl")
    )


def test_the_questions_are_those_of_the_formats_that_no_family_of_the_table_has() -> None:
    listed = on_page_markdown("<!-- questions of formats -->", None, None, None).splitlines()
    assert "- `paligemma`: `detect {expression}`" in listed
    shown = {family.box_format for family in FAMILIES.values()}
    assert len(listed) == len(BOX_FORMATS) - len(shown)


def test_other_pages_stay_as_they_are() -> None:
    assert on_page_markdown("# Title\n", None, None, None) == "# Title\n"
