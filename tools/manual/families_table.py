"""Hook of MkDocs: writes the model families into the manual, from `FAMILIES`.

`<!-- list of families -->` in a page becomes their names, `<!-- table of families -->` a table with
what the settings about boxes are for each, `<!-- questions of formats -->` the questions of all
other box formats.
"""

import html
from typing import Any

from perpo_pipeline.answers.boxes import BOX_FORMATS, format_box
from perpo_pipeline.vlm.families import FAMILIES, Family

HEADER = (
    "| family | transformers' `model_type` | question for a box | answer | `box_format` "
    "| `box_frame` | vLLM serves LoRA |"
)
# The answer of the table: a box of an image with 1000 x 1000 pixels, shown at that size.
BOX, SIZE = (120.0, 340.0, 560.0, 780.0), (1000, 1000)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The page with the placeholders replaced."""
    replaced = markdown.replace("<!-- list of families -->", families_list())
    replaced = replaced.replace("<!-- questions of formats -->", questions_list())
    return replaced.replace("<!-- table of families -->", families_table())


def families_list() -> str:
    """The names of all families: `A, B and C`."""
    *others, last = (family.label for family in FAMILIES.values())
    return f"{', '.join(others)} and {last}"


def questions_list() -> str:
    """A Markdown list: the box formats that no family in the table has, and what they ask."""
    shown = {family.box_format for family in FAMILIES.values()}
    others = [rule for name, rule in BOX_FORMATS.items() if name not in shown]
    return "\n".join(f"- `{rule.name}`: `{rule.instruction}`" for rule in others)


def families_table() -> str:
    """A Markdown table, one row per family."""
    rows = [_row(model_type, family) for model_type, family in FAMILIES.items()]
    return "\n".join([HEADER, "|---" * HEADER.count(" | ") + "|---|", *rows])


def _row(model_type: str, family: Family) -> str:
    answer = format_box(
        BOX, family.box_format, frame=family.box_frame, image_size=SIZE, resized=SIZE
    )
    cells = [
        family.label,
        f"`{model_type}`",
        _code(BOX_FORMATS[family.box_format].instruction),
        _code(answer),
        f"`{family.box_format}`",
        f"`{family.box_frame}`",
        "yes" if family.lora_in_vllm else "no: merged first",
    ]
    return f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    """A text as code in a cell, which a `|` would end: it is then written as HTML."""
    if "|" not in text:
        return f"`{text}`"
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"
