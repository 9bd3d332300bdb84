"""docs/quickstart.ipynb runs from its first cell to its last, and is kept without outputs."""

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from forked_perpo import forked_perpo
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "quickstart.ipynb"
SAID = {  # the command of a cell, and what it must print
    "prepare": "prepare train: prompts, 24 rows",
    "sample": "sample train: samples, ",
    "score": "score train: mean reward ",
    "filter": "filter train: preferences, ",
    "train": "train perpo: adapter, ",
    "eval": "- base: the paired difference to the base",
    "run": "filter",
}


def printed(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def test_it_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, cell.source


@pytest.mark.slow
def test_every_cell_runs_and_shows_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commands are forked from one process with all imports; each would take eight seconds."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    folder = tmp_path / "work"
    folder.mkdir()
    with forked_perpo() as program:
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        client = NotebookClient(
            notebook, timeout=300, resources={"metadata": {"path": str(folder)}}
        )
        client.execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    commands = {cell.source.split()[1]: cell for cell in cells if cell.source.startswith("!perpo ")}
    assert commands.keys() == SAID.keys()
    for name, cell in commands.items():
        assert SAID[name] in printed(cell) and "error" not in printed(cell), printed(cell)
    pictures = [
        output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 4
    (page,) = (folder / "data/quickstart/report/default").glob("*/report.html")
    assert page.stat().st_size > 20_000
    shown = [o for cell in cells for o in cell.outputs if "report.html" in str(o.get("data", ""))]
    assert shown
