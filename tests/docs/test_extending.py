"""docs/extending.md: its steps apply to a copy of the tree; its commands print what it says.

Blocks with a title are new files, `diff` blocks are changes, blocks without a language are
commands and `python` blocks are run. Every line of a `text` block must be in the output of the
commands of its section, where `...` stands for anything and blanks do not matter.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "extending.md"
BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
COPIED = ("src", "configs", "docs", "tests", "tools", "pyproject.toml")

# Runs the page's steps in the copied tree: perpo's commands in this process, others in their own.
RUNNER = """
import contextlib, io, json, shlex, subprocess, sys
from perpo_pipeline import cli

def run(line):
    program, *arguments = shlex.split(line)
    if program == "python":
        command = [sys.executable, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr
    assert program == "perpo", line
    printed, code = io.StringIO(), 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            cli.main(arguments)
        except SystemExit as ended:
            code = ended.code or 0
    return code, printed.getvalue()

results = []
for kind, code in json.load(sys.stdin):
    if kind == "python":
        exec(code, {})
    results.append([code, *(run(code) if kind == "command" else (0, ""))])
json.dump(results, sys.stdout)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block under a heading; `line` is where it begins on the page."""

    section: str
    language: str
    title: str
    code: str
    line: int


def read_blocks(text: str) -> list[Block]:
    found = []
    for match in BLOCK.finditer(text):
        headings = re.findall(r"^## (.+)$", text[: match.start()], flags=re.MULTILINE)
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(headings[-1] if headings else "", *match.groups(""), line))
    return found


def apply_blocks(blocks: list[Block], tree: Path) -> None:
    """Write the new files and apply the diffs, in the order of the page."""
    for block in blocks:
        if block.title:
            file = tree / block.title
            assert not file.exists(), f"line {block.line}: {block.title} exists already"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.code)
        elif block.language == "diff":
            command = ["git", "apply", "-C1", "--recount", "-"]
            done = subprocess.run(
                command, cwd=tree, input=block.code, text=True, capture_output=True, check=False
            )
            assert done.returncode == 0, f"{PAGE.name}, line {block.line}: {done.stderr}"


def steps_of(blocks: list[Block]) -> list[tuple[str, str]]:
    steps = []
    for block in blocks:
        if block.language == "python" and not block.title:
            steps.append(("python", block.code))
        elif not block.language:
            steps += [("command", line) for line in block.code.splitlines() if line]
    return steps


def copy_tree(tree: Path) -> None:
    tree.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)


def run_steps(steps: list[tuple[str, str]], tree: Path) -> list[tuple[str, int, str]]:
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        cwd=tree,
        env=environment,
        input=json.dumps(steps),
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [(code, exit_code, output) for code, exit_code, output in json.loads(done.stdout)]


BLOCKS = read_blocks(PAGE.read_text())
SECTIONS = list(dict.fromkeys(block.section for block in BLOCKS))
Results = dict[str, list[tuple[str, int, str]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Command, exit code and output of each section's steps, in a tree with all the changes."""
    tree = tmp_path_factory.mktemp("extending") / "tree"
    copy_tree(tree)
    apply_blocks(BLOCKS, tree)
    steps = {s: steps_of([block for block in BLOCKS if block.section == s]) for s in SECTIONS}
    done = iter(run_steps([step for section in SECTIONS for step in steps[section]], tree))
    return {section: [next(done) for _ in steps[section]] for section in SECTIONS}


def test_the_page_has_ten_changes() -> None:
    assert len([section for section in SECTIONS if section]) == 10


def fits(expected: str, printed: str) -> bool:
    """Whether a printed line contains what the page shows of it."""
    parts = [" ".join(part.split()) for part in expected.split("...")]
    return bool(re.search(".*".join(map(re.escape, parts)), " ".join(printed.split())))


@pytest.mark.parametrize(
    ("expected", "printed", "is_shown"),
    [
        ("ap90  test ...", "ap90    test   all   62.5 %", True),
        ("... passed in ...", "3 passed in 2.1s", True),
        ("rows in ... s (data/...)", "prepare: 8 rows in 0.1 s (data/tiny/a1)", True),
        ("rows in ... s (data/...)", "prepare: 8 rows in 0.1 s", False),
        ("ap90 test", "ap75 test", False),
    ],
)
def test_what_the_page_shows_of_a_line(expected: str, printed: str, is_shown: bool) -> None:
    assert fits(expected, printed) == is_shown


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section or "the run")
def test_the_steps_of_a_change_do_what_the_page_says(section: str, results: Results) -> None:
    for code, exit_code, output in results[section]:
        assert exit_code == 0, f"{code}\n{output}"
    printed = [line for _, _, output in results[section] for line in output.splitlines()]
    expected = [
        line
        for block in BLOCKS
        if block.section == section and block.language == "text" and not block.title
        for line in block.code.splitlines()
    ]
    assert expected or not section
    for line in expected:
        assert any(fits(line, shown) for shown in printed), "\n".join(["missing:", line, *printed])


def test_a_step_that_no_longer_applies_is_found(tmp_path: Path) -> None:
    copy_tree(tmp_path / "tree")
    metrics = tmp_path / "tree" / "src" / "perpo_pipeline" / "evaluate" / "metrics.py"
    metrics.write_text(metrics.read_text().replace("ap75", "ap74").replace("miou", "mean_iou"))
    with pytest.raises(AssertionError, match=r"extending.md, line \d+: .*metrics.py"):
        apply_blocks(BLOCKS, tmp_path / "tree")
