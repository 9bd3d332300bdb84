"""The limit of a sweep's time, where the time of some of its steps is unknown."""

from pathlib import Path
from typing import Any, cast

import pytest
from sweep.fake_stages import write_files

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.sweep.cells import make_cells
from perpo_pipeline.sweep.estimate import Estimates, check_time, total_seconds
from perpo_pipeline.sweep.file import read_sweep
from perpo_pipeline.sweep.steps import make_steps


class _Known:
    """Evaluations take one to two hours each; how long trainings take is unknown."""

    def seconds(self, step: Any) -> tuple[float, float] | None:
        return {"eval": (3600.0, 7200.0), "train": None}.get(step.stage, (0.0, 1.0))


def test_a_limit_is_kept_by_what_is_known_and_named_where_it_cannot_be(tmp_path: Path) -> None:
    cells = make_cells(read_sweep(write_files(tmp_path)))
    steps, known = [*make_steps(cells)[0].values()], cast(Estimates, _Known())
    assert total_seconds(known, steps) is None
    # 13 cells are evaluated, 12 of them are trained.
    with pytest.raises(ConfigError, match=r"about 13\.0 hours or more, and --max-hours is 12"):
        check_time(known, steps, 1, 12)
    note = check_time(known, steps, 2, 12)
    assert note is not None and note.startswith("--max-hours 12 cannot be checked: the time of 12")
    assert "(first train dpo, train.beta 0.1, seed 0)" in note and "about 6.5 hours" in note
    others = [step for step in steps if step.stage != "train"]
    assert check_time(known, others, 2, 12) is None and check_time(known, steps, 1, None) is None
    for wrong in (float("nan"), -1.0):
        with pytest.raises(ConfigError, match="--max-hours is"):
            check_time(known, [], 1, wrong)
