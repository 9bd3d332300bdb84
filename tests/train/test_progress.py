"""The progress that a running training shows."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from perpo_pipeline import bars
from perpo_pipeline.bars import Bar
from perpo_pipeline.train.progress import Progress, figures

LOGS = {"loss": 0.51234, "reward_accuracy": 0.7777, "tokens_per_s": 5230.4, "kl": 0.1}


def line_of(step: int, steps: int, seconds_per_step: float, monkeypatch: Any) -> str:
    """The line after `step`, where each step took so long; there is no figure but the last's."""
    clock = [0.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: clock[0])
    with Bar("train perpo", steps, initial=step - 2, unit="steps", quiet=True) as bar:
        for _ in range(2):
            clock[0] += seconds_per_step
            bar.update(1, figures(LOGS))
        return bar.line()


def test_a_line_has_loss_accuracy_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert line_of(1200, 1800, 0.5, monkeypatch) == (
        "train perpo: 1,200 of 1,800 steps, 2/s, loss 0.512, accuracy 0.78, tokens/s 5,230, "
        "5 min left"
    )
    assert figures({"loss": 2.0}) == {"loss": "2"}  # SFT has no accuracy


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.1, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (9000, "2.5 h")],
)
def test_time_left_has_a_fitting_unit(
    seconds: float, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert line_of(2, 3, seconds, monkeypatch).endswith(f", {shown} left")


def run(
    monkeypatch: pytest.MonkeyPatch, *, quiet: bool = False, terminal: bool = False, rank: int = 0
) -> None:
    """Ten steps of 25 s each, resumed after the second."""
    clock = [0.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    state: Any = SimpleNamespace(global_step=2, max_steps=10, is_world_process_zero=rank == 0)
    nothing: Any = None
    shown = Progress("train perpo", quiet)
    shown.on_train_begin(nothing, state, nothing)
    for step in range(3, 11):
        clock[0] += 25
        state.global_step = step
        shown.on_log(nothing, state, nothing, LOGS)
    shown.on_log(nothing, state, nothing, {"train_runtime": 200.0})  # Trainer's last word
    shown.on_train_end(nothing, state, nothing)


def test_a_log_gets_a_line_per_minute_and_one_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "train perpo: 5 of 10 steps",
        "train perpo: 8 of 10 steps",
        "train perpo: 10 of 10 steps",
    ]
    assert lines[0].endswith("2 min left")  # five steps of 25 s
    assert lines[1].endswith("50 s left") and lines[2].endswith("0 s left")


def test_a_terminal_gets_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, terminal=True)
    shown = capsys.readouterr().err
    assert "loss 0.512" in shown and "accuracy 0.78" in shown and "tokens/s 5,230" in shown
    assert "5/10" in shown and "5 of 10 steps" not in shown


@pytest.mark.parametrize("how", [{"quiet": True}, {"rank": 1}])
@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_runs_and_other_ranks_show_nothing(
    how: Any, terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, terminal=terminal, **how)
    assert capsys.readouterr().err == ""
