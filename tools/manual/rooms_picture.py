"""Draws docs/rooms.svg: the rooms of the package, and what each may import.

    python -m tools.manual.rooms_picture

The layers come from the import contract in pyproject.toml, the words from the rooms' docstrings.
"""

import ast
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "rooms.svg"
PACKAGE = ROOT / "src" / "perpo_pipeline"

WIDTH, MARGIN, LAYER_HEIGHT, LINE = 860, 16, 26, 19
STYLE = """
  .back { fill: #ffffff } .layer { fill: #eef1fb; stroke: #3f51b5 } .room { font-weight: 600 }
  text { font: 14px ui-sans-serif, system-ui, sans-serif; fill: #1b1f2e }
  .room { font-family: ui-monospace, monospace } .note { fill: #4a5068 }
"""


def layers() -> list[list[str]]:
    """The rooms from top to bottom; those of one layer do not import each other."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    (found,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    return [[room.strip() for room in layer.split("|")] for layer in found]


def summary(room: str) -> str:
    """The first sentence of the room's docstring."""
    package = PACKAGE / room / "__init__.py"
    source = package if package.is_file() else PACKAGE / f"{room}.py"
    docstring = ast.get_docstring(ast.parse(source.read_text())) or ""
    return " ".join(docstring.split("\n\n")[0].split()).removesuffix(".").replace("`", "")


def draw() -> str:
    """The picture as SVG."""
    parts, y = [], 2 * MARGIN + 2 * LINE
    for rooms in layers():
        height = LAYER_HEIGHT + LINE * (len(rooms) - 1) + 6
        parts.append(
            f'<rect class="layer" x="{MARGIN}" y="{y}" width="{WIDTH - 2 * MARGIN}" '
            f'height="{height}" rx="6"/>'
        )
        for index, room in enumerate(rooms):
            line = y + LINE * (index + 1)
            parts.append(f'<text class="room" x="{2 * MARGIN}" y="{line}">{escape(room)}</text>')
            parts.append(f'<text class="note" x="150" y="{line}">{escape(summary(room))}</text>')
        y += height + 8
    title = "Each room imports only rooms below it; rooms in one box do not import each other."
    more = "Of the stages, report, merge and export may import only evaluate."
    head = [
        f'<text x="{MARGIN}" y="{MARGIN + LINE * line}">{text}</text>'
        for line, text in enumerate((title, more), start=1)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + MARGIN}" '
            f'role="img" aria-label="{title}">',
            f"<style>{STYLE}</style>",
            f'<rect class="back" width="{WIDTH}" height="{y + MARGIN}"/>',
            *head,
            *parts,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(draw())
