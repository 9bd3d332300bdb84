"""The range of a trial on a quiet and on a busy machine, by hand."""

import pytest

from perpo_pipeline.planning.calibration import Seconds


def test_on_a_quiet_machine_the_range_lies_around_what_was_measured() -> None:
    assert Seconds(wall=1.3, processor=2.5).span(threads=2) == pytest.approx((1.0, 1.69))


def test_on_a_busy_machine_it_begins_where_all_threads_would_work() -> None:
    assert Seconds(wall=13.0, processor=4.0).span(threads=2) == pytest.approx((2.0, 16.9))
    assert Seconds(wall=13.0, processor=4.0).span(threads=None)[0] == pytest.approx(10.0)
