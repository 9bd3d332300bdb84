"""The wheel in an empty folder: what ships is in it, and a run works without the project."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from perpo_pipeline import __version__

ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "configs", "stages")
FILES = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE")
BUILD = "from setuptools import build_meta; build_meta.build_wheel('wheel')"
PERPO = '#!/bin/sh\nexec "{python}" -m perpo_pipeline.cli "$@"\n'


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of a wheel, built from a copy of the project's files."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "project"
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=skipped)
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    built = subprocess.run([sys.executable, "-c", BUILD], cwd=copy, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = (copy / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "unpacked")
    shutil.rmtree(copy)
    return folder / "unpacked"


def environment(unpacked: Path, tmp_path: Path) -> dict[str, str]:
    """That of a shell in which the wheel is installed, and `perpo` is on the PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "perpo").write_text(PERPO.format(python=sys.executable))
    (programs / "perpo").chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    given = {**os.environ, "PATH": path, "PYTHONPATH": str(unpacked)}
    given.pop("PYTHONDONTWRITEBYTECODE", None)  # each command would compile the package
    return given


def test_a_wheel_has_the_configurations_and_the_rules_of_make(unpacked: Path) -> None:
    shipped = unpacked / "perpo_pipeline" / "shipped"
    for folder, pattern in (("configs", "**/*.yaml"), ("configs", "*.sbatch"), ("stages", "*.mk")):
        own = {file.relative_to(ROOT / folder) for file in (ROOT / folder).glob(pattern)}
        there = {file.relative_to(shipped / folder) for file in (shipped / folder).glob(pattern)}
        assert own == there and own, folder
    assert (shipped / "constraints.txt").read_text() == (ROOT / "constraints.txt").read_text()
    assert {file.name for file in (shipped / "run_folder").iterdir()} == {"Makefile", "README.md"}
    own = {
        file for file in (ROOT / "src").rglob("*") if file.is_file() and "pycache" not in str(file)
    }
    data = {file.relative_to(ROOT / "src") for file in own if "egg-info" not in str(file)}
    assert not [file for file in data if not (unpacked / file).is_file()]
    (metadata,) = unpacked.glob("*.dist-info/METADATA")
    assert f"\nVersion: {__version__}\n" in metadata.read_text()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_a_run_folder_works_where_only_the_wheel_is(unpacked: Path, tmp_path: Path) -> None:
    given = environment(unpacked, tmp_path)
    folder = tmp_path / "glasses"

    def call(*words: str, where: Path = folder) -> str:
        done = subprocess.run(words, cwd=where, env=given, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call("perpo", "init", "glasses", "--recipe", "ci", where=tmp_path)
    assert sorted(os.listdir(folder)) == [".gitignore", "Makefile", "README.md", "perpo.yaml"]
    commands = call("make", "-n", "all").splitlines()
    stages = [line.split()[1] for line in commands if line.startswith("perpo ")]
    order = ("prepare", "sample", "score", "filter", "train", "eval", "report")
    assert list(dict.fromkeys(stages)) == list(order)
    assert all("--config perpo.yaml" in line for line in commands if line.startswith("perpo "))

    settings = call("perpo", "settings", "model")
    assert 'the manual\'s page "boxes"' in settings and "docs/" not in settings, "it has no pages"
    state = call("perpo", "status")
    assert "run glasses (data/glasses)" in state and "perpo run --config perpo.yaml" in state
