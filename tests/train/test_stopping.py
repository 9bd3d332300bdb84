"""When a checkpoint is due by the clock."""

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from perpo_pipeline.train import stopping
from perpo_pipeline.train.processes import World
from perpo_pipeline.train.stopping import StopAtRequest


@pytest.mark.parametrize(
    ("saving_s", "expected"),
    [pytest.param(5, [600, 1205], id="quick"), pytest.param(60, [600, 1860], id="slow")],
)
def test_saving_takes_at_most_a_twentieth_of_the_time(
    monkeypatch: pytest.MonkeyPatch, saving_s: int, expected: list[int]
) -> None:
    """Every ten minutes; after a save of a minute, twenty minutes pass until the next."""
    clock = 0
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: clock))
    request: Any = SimpleNamespace(number=0)
    callback = StopAtRequest(request, World(), every_s=600)
    state, arguments = TrainerState(max_steps=10_000), Any
    saved = []
    while len(saved) < len(expected):
        clock += 1
        state.global_step += 1
        control = TrainerControl()
        callback.on_step_end(arguments, state, control)
        if control.should_save:
            saved.append(clock)
            clock += saving_s
            callback.on_save(arguments, state, control)
    assert saved == expected
