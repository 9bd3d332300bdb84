"""Hook of MkDocs: writes the families' own box formats into the manual, from `FAMILIES`.

`<!-- table of families -->` in a page becomes a table with what the settings about boxes are for
each family that has a format of its own, `<!-- questions of formats -->` the questions of all other
box formats.
"""

import html
from typing import Any

from perpo_pipeline.answers.boxes import BOX_FORMATS, format_box
from perpo_pipeline.vlm.families import FAMILIES, Family

HEADER = "| families | question for a box | answer | `box_format` | `box_frame` | source |"
# The answer of the table: a box of an image with 1000 x 1000 pixels, shown at that size.
BOX, SIZE = (120.0, 340.0, 560.0, 780.0), (1000, 1000)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The page with the placeholders replaced."""
    replaced = markdown.replace("<!-- questions of formats -->", questions_list())
    return replaced.replace("<!-- table of families -->", families_table())


def questions_list() -> str:
    """A Markdown list: the box formats that no family in the table has, and what they ask."""
    shown = {family.box_format for family in FAMILIES.values()}
    others = [rule for name, rule in BOX_FORMATS.items() if name not in shown]
    return "\n".join(f"- `{rule.name}`: `{rule.instruction}`" for rule in others)


def families_table() -> str:
    """A Markdown table, one row for the families that answer alike."""
    alike: dict[tuple[str, str], list[Family]] = {}
    for family in FAMILIES.values():
        if family.box_format is not None:
            alike.setdefault((family.box_format, family.box_frame), []).append(family)
    rows = [_row(*settings, families) for settings, families in alike.items()]
    return "\n".join([HEADER, "|---" * HEADER.count(" | ") + "|---|", *rows])


def _row(box_format: str, box_frame: str, families: list[Family]) -> str:
    answer = format_box(BOX, box_format, frame=box_frame, image_size=SIZE, resized=SIZE)
    cells = [
        ", ".join(family.label for family in families),
        _code(BOX_FORMATS[box_format].instruction),
        _code(answer),
        f"`{box_format}`",
        f"`{box_frame}`",
        "; ".join(dict.fromkeys(family.box_source for family in families)),
    ]
    return f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    """A text as code in a cell, which a `|` would end: it is then written as HTML."""
    if "|" not in text:
        return f"`{text}`"
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"
