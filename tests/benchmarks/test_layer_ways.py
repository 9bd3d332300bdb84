"""benchmarks/layer_ways.py on a few tokens: both ways agree, and it counts what it says."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_it_prints_a_row_for_each_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import layer_ways

    for name, value in {"PREFIX": 24, "ANSWER": 3, "NUM": 4}.items():
        monkeypatch.setattr(layer_ways, name, value)
    rows = layer_ways.main(["--repeats", "1"])
    assert [row["model"] for row in rows] == list(layer_ways.MODELS)
    bound = 4 * 27 / (24 + 4 * 3)
    for row in rows:
        assert row["of_bound"] == pytest.approx(row["speed_up"] / bound)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3 + len(rows)
    assert all("of 3.0x | ok: log-probabilities differ" in line for line in printed[3:])
