"""A finished run, which is made once, and copied for each test."""

import os
import shutil
from pathlib import Path

import pytest
from status.made_run import configured, make_run, write_file


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    make_run(configured(write_file(root)))
    return root


@pytest.fixture
def file(made_once: Path, tmp_path: Path) -> Path:
    """The configuration's file of a finished run of one's own."""
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    for manifest in (tmp_path / "r" / "prompts" / "train").glob("*/manifest.json"):
        manifest.write_text(manifest.read_text().replace(str(made_once), str(tmp_path)))
    path = write_file(tmp_path)
    os.utime(tmp_path / "rows.jsonl", (1, 1))  # older than the prompts
    return path
