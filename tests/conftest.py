"""Fixtures that many tests share."""

import os
from pathlib import Path

import pytest

PROJECT_ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real data with known answers, which is not part of the project.

    PERPO_REALDATA names it where it must be there (CI): then its absence is a failure.
    """
    named = os.environ.get("PERPO_REALDATA")
    folder = Path(named) if named else PROJECT_ROOT.parent / "shared" / "realdata"
    if folder.is_dir():
        return folder
    if named:
        pytest.fail(f"PERPO_REALDATA is {named}, which is not a folder")
    pytest.skip(f"the real-data oracles are absent: no folder {folder}")
