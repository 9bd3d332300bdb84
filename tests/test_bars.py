"""The time left follows from recent speed, and messages never touch a bar."""

import sys
from collections.abc import Iterator

import pytest

from perpo_pipeline import bars
from perpo_pipeline.bars import Bar, Speed
from perpo_pipeline.run import Console


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [0.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])
    yield now
    bars.close_all()


def test_neither_loading_nor_the_first_call_counts_in_the_speed() -> None:
    """Four prompts side by side: 75 s for the first four, then four every 2 s."""
    speed = Speed(wave=4)
    for number in range(4):
        speed.add(1, 75.0 + number / 100)
        assert speed.per_s is None
    for _ in range(2):
        speed.add(0, 76.0)
        assert speed.per_s is None
    for number in range(4):
        speed.add(1, 77.03 + number * 1e-9)
    assert speed.per_s == pytest.approx(2.0, rel=1e-6)


def test_the_speed_is_that_of_the_last_minutes() -> None:
    """1/s for ten minutes, then 4/s for three: after e^-3 of the old, 4 - 3 e^-3 = 3.85/s."""
    speed = Speed()
    for second in range(600):
        speed.add(1, float(second))
    assert speed.per_s == pytest.approx(1.0)
    for quarter in range(4 * 180):
        speed.add(1, 599 + (quarter + 1) / 4)
    assert speed.per_s == pytest.approx(3.85, abs=0.02)


def test_a_log_gets_a_line_per_minute_and_says_what_happens_before_the_first_prompt(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    bar = Bar("eval base@test", 240, unit="prompts", wave=16, doing="loading the model")
    for seconds in (30, 59):
        clock[0] = seconds
        bar.update(0)
    assert capsys.readouterr().err == ""
    clock[0] = 75
    bar.phase("answering the first prompts")
    clock[0] = 136
    bar.update(0)
    for seconds in (140, 150, 160, 170, 180, 190, 200):
        clock[0] = seconds
        bar.update(16, {"tokens/s": "51"})
    bar.close()
    bar.update(16)
    assert capsys.readouterr().err.splitlines() == [
        "eval base@test: answering the first prompts, 0 s",
        "eval base@test: answering the first prompts, 61 s",
        "eval base@test: 112 of 240 prompts, 1.6/s, tokens/s 51, 80 s left",
    ]


def test_a_bar_is_cleared_before_a_message_and_drawn_again_below_it(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    console = Console()
    with console.bar("sample train", 240, unit="prompts", doing="loading the model") as bar:
        bar.update(16, {"parsed": "98%"})
        clock[0] = 10
        bar.update(16)
        capsys.readouterr()
        console.say("sample: it is slow")
        shown = capsys.readouterr().err
    message = next(line for line in shown.split("\n") if "it is slow" in line)
    assert message.split("\r")[-1] == "sample: it is slow", "alone on its line"
    assert "32/240, 2 min left, 1.6/s, parsed 98%" in shown.split("it is slow")[1]


def test_what_an_error_leaves_open_is_cleared_before_it_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    items = Console().progress([1, 2, 3], "score train", unit="parts")
    assert next(iter(items)) == 1
    bars.close_all()
    capsys.readouterr()
    bars.write("perpo: error: x")
    assert capsys.readouterr().err == "perpo: error: x\n"


def test_quiet_is_quiet(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda shows=terminal: shows, raising=False)
        with Console(quiet=True).bar("sample train", 4, doing="loading the model") as bar:
            clock[0] += 100
            bar.update(2)
            bar.print_last_line()
    assert capsys.readouterr().err == ""
