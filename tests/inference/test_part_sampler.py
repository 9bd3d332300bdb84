"""Which prompts a call of the backend has where lengths and batch sizes differ by task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from perpo_pipeline.config.inference import Decoding
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.config.sample import SampleConfig
from perpo_pipeline.inference.backend import BackendSetup, OnDone, Row, SampledList
from perpo_pipeline.inference.part_sampler import PLACE_IN_PART, PartSampler
from perpo_pipeline.vlm.completion import Completion

LENGTHS: Any = {"grounding": 20, "ocr": 100}
PROMPTS = [
    {"prompt_id": f"p{i}", "place": "", "task": task, PLACE_IN_PART: i}
    for i, task in enumerate(["grounding", "ocr", "grounding", "grounding", "ocr", "grounding"])
]


class Recording:
    """Records the calls; answers the prompts of each."""

    answers_alone = False

    def __init__(self, setup: BackendSetup) -> None:
        self.prompts_per_call = setup.settings.batch_size
        self.calls: list[tuple[list[str], set[int]]] = []
        self.setup = setup

    def expect(self, rows: Sequence[Row]) -> None:
        pass

    def sample(self, rows: Sequence[Row], seeds: Sequence[int], on_done: OnDone) -> None:
        limits = {self.setup.longest(row) for row in rows}
        self.calls.append(([row["prompt_id"] for row in rows], limits))
        for index in range(len(rows)):
            on_done(index, SampledList([Completion("x", (5,), "stop", None)], None))


def calls(
    monkeypatch: pytest.MonkeyPatch, settings: SampleConfig, prompts: Sequence[dict[str, Any]]
) -> tuple[list[tuple[list[str], set[int]]], list[str]]:
    monkeypatch.setattr("perpo_pipeline.inference.part_sampler.open_backend", Recording)
    setup = BackendSetup(ModelConfig(), cast(Any, None), {}, settings, Path())
    sampler = PartSampler(setup, 0)
    rows = sampler.sample([*prompts], lambda *_: None)
    return cast(Any, sampler.backend).calls, [row["prompt_id"] for row in rows]


def test_a_call_has_prompts_of_one_task_up_to_its_own_batch_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = SampleConfig(max_new_tokens=LENGTHS, batch_size={"grounding": 4, "ocr": 2})
    found, _ = calls(monkeypatch, settings, PROMPTS)
    assert found == [
        (["p0", "p2", "p3"], {20}),
        (["p1"], {100}),
        (["p4"], {100}),
        (["p5"], {20}),
    ]
    # Another sitting, in which p2 is answered already, makes no other batches of the rest.
    again, _ = calls(monkeypatch, settings, [PROMPTS[i] for i in (0, 1, 3, 4, 5)])
    assert again[0] == (["p0", "p3"], {20}) and again[1:] == found[1:]


def test_one_value_for_all_tasks_makes_the_calls_it_always_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, ids = calls(monkeypatch, SampleConfig(max_new_tokens=50, batch_size=4), PROMPTS)
    assert found == [(["p0", "p1", "p2", "p3"], {50}), (["p4", "p5"], {50})]
    assert ids == [f"p{i}" for i in range(6)]


def test_the_length_is_that_of_the_prompts_task() -> None:
    assert SampleConfig(max_new_tokens=LENGTHS).decoding("ocr") == Decoding(100, 20, 0.5)
