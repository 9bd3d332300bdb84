"""Habits of wording that readers had to decode, and that must not come back.

STYLE: subject, verb, object; "report" and not "tell"; "one per GPU" and not "one a GPU".
"""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUFFIXES = (".py", ".md", ".yaml", ".mk", ".html", ".toml", ".sbatch")
# Published prompts are measured instruments, and the changelog quotes former names.
LEFT_OUT = ("evaluate/judge/prompts/", "CHANGELOG.md", "tests/docs/test_plain_english.py")
HABITS = {
    "tell": re.compile(r"\b(tells?|told)\b(?!\w)(?! \w+ apart)(?!\()", re.IGNORECASE),
    "one a": re.compile(
        r"\b(one|two|\d+) an? (GPU|call|step|prompt|list|part|row|token|process)\b"
    ),
    "fmt: skip": re.compile(r"#\s*fmt:\s*(skip|off|on)\b"),
}


def habits_in(text: str) -> list[str]:
    """Line number and habit of each place where one of them is found."""
    return [
        f"{number}: {habit}: {line.strip()[:80]}"
        for number, line in enumerate(text.splitlines(), start=1)
        for habit, pattern in HABITS.items()
        if pattern.search(line)
    ]


def test_no_file_has_a_habit() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not listed:
        pytest.skip("not a git checkout")
    files = [
        name
        for name in listed
        if (name.endswith(SUFFIXES) or name == "Makefile")
        and not any(part in name for part in LEFT_OUT)
    ]
    assert len(files) > 300
    found = [f"{name}:{place}" for name in files for place in habits_in((ROOT / name).read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "habit"),
    [
        ("Lost machines are told.", "tell"),
        ("processes, one a GPU", "one a"),
        ("x = 1  # fmt: skip", "fmt: skip"),
    ],
)
def test_a_habit_is_found(line: str, habit: str) -> None:
    assert [place.split(": ")[1] for place in habits_in(line)] == [habit.split(":")[0]]


@pytest.mark.parametrize(
    "line", ["too few lists to tell methods apart", "buffer.tell()", "one per GPU", "one plot"]
)
def test_other_wording_is_not_found(line: str) -> None:
    assert not habits_in(line)
