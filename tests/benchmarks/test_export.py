"""benchmarks/export.py on a few lists: does it count the rows that are written?"""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_rows_and_what_was_read_are_counted() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import export

        ways = ["grpo", "llamafactory", "trl, all pairs"]
        rows = export.main(["--lists", "3", "--only", *ways])
    assert [row["name"] for row in rows] == ways
    prompts, pairs, every = rows
    assert prompts["rows"] == pairs["rows"] == 3 and prompts["completions_per_s"] == 0
    assert 3 * 100 < every["rows"] <= 3 * 190  # of 20 completions, some with equal rewards
    assert min(row["rows_per_s"] for row in rows) > 0
    assert pairs["completions_per_s"] / pairs["rows_per_s"] == pytest.approx(20, rel=0.1)
