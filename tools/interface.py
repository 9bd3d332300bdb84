"""Writes tests/golden/interface-VERSION.json: what this version promises its users by name.

    python -m tools.interface

Every release leaves such a file behind; `tests/test_promises.py` compares today's program with all
of them (docs/releasing.md). Until its release a version's own file is written anew.
"""

import ast
import json
import re
from pathlib import Path
from typing import Any

import typer.main

from perpo_pipeline import __version__, cli
from perpo_pipeline.config.reference import SECTIONS, groups
from perpo_pipeline.store.schemas import ALL

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "tests" / "golden"


def interface() -> dict[str, Any]:
    """Options by command, settings, schema versions, and the names of the documented modules."""
    paths = (one.path for name in SECTIONS for group in groups(name) for one in group.settings)
    return {
        "options": dict(_options("", typer.main.get_command(cli.app))),
        "settings": sorted(set(paths)),
        "schemas": {name: table.version for name, table in sorted(ALL.items())},
        "python": {module: _public(module) for module in documented_modules()},
    }


def documented_modules() -> list[str]:
    """The modules that the manual's Python reference documents."""
    return re.findall(r"^::: (\S+)$", (ROOT / "docs/reference.md").read_text(), re.MULTILINE)


def _options(name: str, command: Any) -> list[tuple[str, list[str]]]:
    if hasattr(command, "commands"):
        inner = sorted(command.commands.items())
        return [row for sub, one in inner for row in _options(f"{name} {sub}".strip(), one)]
    given = {option for parameter in command.params for option in parameter.opts}
    return [] if command.hidden else [(name, sorted(o for o in given if o.startswith("--")))]


def _public(module: str) -> list[str]:
    """Its functions, classes and constants without an underscore, read from its source."""
    tree = ast.parse((ROOT / "src" / Path(*module.split("."))).with_suffix(".py").read_text())
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.append(node.target.id)
        elif isinstance(node, ast.Assign):
            found += [one.id for one in node.targets if isinstance(one, ast.Name)]
    return sorted(name for name in found if not name.startswith("_"))


if __name__ == "__main__":
    record = RECORDS / f"interface-{__version__}.json"
    record.write_text(json.dumps(interface(), indent=1) + "\n", encoding="utf-8")
    print(record)
