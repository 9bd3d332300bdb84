"""The range of a trial on a quiet and on a busy machine, by hand."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from perpo_pipeline.config.train import TrainConfig
from perpo_pipeline.planning.calibration import Seconds, _Worker


def test_on_a_quiet_machine_the_range_lies_around_what_was_measured() -> None:
    assert Seconds(wall=1.3, processor=2.5).span(threads=2) == pytest.approx((1.0, 1.69))


def test_on_a_busy_machine_it_begins_where_all_threads_would_work() -> None:
    assert Seconds(wall=13.0, processor=4.0).span(threads=2) == pytest.approx((2.0, 16.9))
    assert Seconds(wall=13.0, processor=4.0).span(threads=None)[0] == pytest.approx(10.0)


@pytest.mark.parametrize("method", ["perpo", "dpo"])
def test_equal_answers_are_lists_that_a_step_can_be_timed_on(method: str) -> None:
    """At a low temperature, or for one prompt; there were no lists, and a division by zero."""
    (settings,) = TrainConfig(methods={method: {}}).variants().values()
    sections = {"model": SimpleNamespace(preprocess="pad"), "filter": SimpleNamespace(list_size=2)}
    run: Any = SimpleNamespace(config=SimpleNamespace(**sections))
    answers: Any = [SimpleNamespace(token_ids=[5, 6, 7])] * 20
    worker = _Worker(run, cast(Any, None), Seconds(1, 1))
    (made,) = worker._lists([{"prompt_id": "a"}], [answers], settings)
    assert len(made.counts) == 2
    many: Any = [SimpleNamespace(token_ids=[number]) for number in range(20)]
    (made,) = worker._lists([{"prompt_id": "a"}], [many], settings)
    assert len(made.counts) == 2  # filter.list_size
