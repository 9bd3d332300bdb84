"""Rendered prompts are a sequence that ends."""

import pytest

from perpo_pipeline import testbed
from perpo_pipeline.prepare.testbed import render_prompts


def test_a_loop_over_the_rows_ends_with_the_last_one() -> None:
    rows = render_prompts(testbed.testbed_settings(0, "train", 3), "train")
    found = [row["source_row"] for row in rows]  # it went on for ever
    assert len(found) == len(rows) == len(set(found)) == 3
    with pytest.raises(IndexError):
        rows[3]
