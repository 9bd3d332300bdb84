"""The commit that an artifact's manifest names."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from perpo_pipeline.store import provenance

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=me", "-c", "user.email=me@here.example", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_the_commit_is_named_with_its_changes_and_no_lock_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock of a git that is killed on a busy machine would stay, and stop the user's own git."""
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "code.py"))
    found = provenance.git_commit.__wrapped__
    git(tmp_path, "init", "-q", ".")
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "--short=12", "HEAD").strip()
    os.utime(tmp_path / "code.py", (1, 1))  # git would now renew its index
    before = (tmp_path / ".git/index").stat()
    assert found() == commit
    after = (tmp_path / ".git/index").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    (tmp_path / "code.py").write_text("2\n")
    (tmp_path / "new.txt").write_text("not of the program\n")
    assert found() == f"{commit}-dirty"
