"""The Dockerfile's logic, as far as it shows without Docker."""

import re
import shlex
from pathlib import Path

from shipped.test_wheel import FILES, FOLDERS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
STEPS = [line.split(maxsplit=1) for line in TEXT.splitlines() if re.match("[A-Z]", line)]


def test_it_copies_what_the_wheel_is_built_from_and_the_build_sees_no_more() -> None:
    """test_wheel.py builds a wheel from a copy of these files and folders alone."""
    copied: list[str] = []
    for name, words in STEPS:
        if name == "COPY" and not words.startswith("--from"):
            *sources, _ = shlex.split(words)
            copied += sources
    assert sorted(copied) == sorted([*FILES, *FOLDERS])
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    seen = [line[1:] for line in lines if line.startswith("!")]
    assert sorted(seen) == sorted(copied) and "*" in lines


def test_the_lock_is_used_and_the_program_is_not_root() -> None:
    installs = [words for name, words in STEPS if name == "RUN" and "pip install" in words]
    (install,) = installs
    torch, rest = install.split("pip install")[1:]
    assert "--no-deps" in torch and "grep '^torch=='" in torch
    assert "--constraint /wheel/constraints.txt" in rest
    assert re.search(r"^torch==[\d.]+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    last = {name: words for name, words in STEPS}
    assert last["USER"] == "perpo" and last["VOLUME"] == "/runs/data" == last["WORKDIR"] + "/data"
    assert last["ENTRYPOINT"] == '["perpo"]'
    arguments = {words.split("=")[0]: words for name, words in STEPS if name == "ARG"}
    assert '${TORCH_INDEX:+--index-url "$TORCH_INDEX"}' in torch and "--index-url" not in rest
    docs = (ROOT / "docs/installing.md").read_text()
    assert all(re.search(rf'--build-arg "?{name}=', docs) for name in arguments)
