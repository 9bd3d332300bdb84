"""Lists that the reference model cannot read whole are left out of the training, with their number.

tests/train/test_train_adapter.py trains with another model as the reference.
"""

from pathlib import Path

import pytest
from synthetic_run import synthetic_config

from perpo_pipeline.errors import InputError
from perpo_pipeline.run import Run
from perpo_pipeline.train.lists import TrainingList
from perpo_pipeline.train.references import OWN, lists_that_both_read
from perpo_pipeline.train.task import TaskLists


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
