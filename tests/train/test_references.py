"""Lists that the reference model cannot read whole are left out of the training, with their number.

tests/train/test_train_adapter.py trains with another model as the reference.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from synthetic_run import synthetic_config

from perpo_pipeline.errors import InputError
from perpo_pipeline.run import Run
from perpo_pipeline.train import references
from perpo_pipeline.train.lists import TrainingList
from perpo_pipeline.train.processes import World
from perpo_pipeline.train.references import OWN, lists_that_both_read
from perpo_pipeline.train.task import TaskLists
from perpo_pipeline.vlm import loading


def test_faults_of_the_lists_name_the_setting_of_the_reference_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_long(run: Run, task: Any, vlm: Any) -> TaskLists:
        raise InputError("2 of 3 lists are longer than the model's context", where="there", fix="f")

    monkeypatch.setattr(loading, "load_without_weights", lambda *_, **__: None)
    monkeypatch.setattr(references, "check_reference_reads", lambda *_: None)
    monkeypatch.setattr(references, "read_lists", too_long)
    task: Any = SimpleNamespace(
        reference=True, preferences=None, of_reference=lambda: SimpleNamespace(resolved=None)
    )
    run = Run(synthetic_config(tmp_path))
    with pytest.raises(
        InputError, match=r"train\.reference_model: 2 of 3 lists are longer"
    ) as said:
        references.references_of_another_model(run, task, World(), None)
    assert (said.value.where, said.value.fix) == ("there", "f")


def test_lists_without_a_reference_are_dropped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(synthetic_config(tmp_path))
    boxes, page, long = (
        TrainingList({"prompt_id": name}, [[1], [2]], [0.0, 1.0], [1, 1]) for name in "abc"
    )
    found = TaskLists([boxes, long], [boxes, page, long], boxes, ["z"])
    whole = {OWN: {name: [-1.0, -2.0] for name in "abc"}}
    assert lists_that_both_read(run, found, whole) is found
    assert capsys.readouterr().err == ""
    short = {OWN: {name: [-1.0, -2.0] for name in "ab"}}
    left = lists_that_both_read(run, found, short)
    assert left == TaskLists([boxes], [boxes, page], boxes, ["z", "c"])
    assert "dropped 1 lists that are too long for train.reference_model" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"every list is too long for train\.reference_model"):
        lists_that_both_read(run, found, {OWN: {"b": [-1.0, -2.0]}})
